// From the form to pictures: Generate, Cancel, progress, the place in the queue, refusals.

import { Drawing } from "./api.js";
import { controlFields } from "./extras.js";
import { $, clearErrors, request, showError } from "./fields.js";
import { add, picture, preview } from "./gallery.js";
import { axis, requestsOf, sheetOf } from "./sheet.js";
import { blobOf, sourceFields } from "./source.js";

const AT_ONCE = 4; // requests of a sheet: those of one shape become one batch of the server
const MOST_SEED = 4294967294;
let running = null; // the Drawings of what is drawn now

const title = document.title;
const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
const percent = (share) => `${Math.round(100 * share)}%`;

/** Says something to screen readers (the same twice is not said again), and to all when nothing is drawn. */
export function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
  if (!running) $("state").textContent = text;
}

/** share: 0 to 1, or null where nothing is known. */
function showProgress(text, share) {
  const bar = $("progress");
  $("state").textContent = text;
  if (share === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", Math.round(100 * share));
  bar.setAttribute("aria-valuetext", text);
  bar.firstElementChild.style.width = share === null ? "" : percent(share);
  document.title = share === null ? `… ${title}` : `${percent(share)} ${title}`;
}

function begin() {
  running = [];
  $("view").classList.add("drawing");
  $("progress").hidden = false;
  $("generate").setAttribute("aria-disabled", "true");
  $("cancel").removeAttribute("aria-disabled");
  showProgress("Sent to the server", null);
  say("Sent to the server");
  if (matchMedia("(width < 60rem)").matches) $("view").scrollIntoView({ block: "nearest" });
}

function end() {
  running = null;
  $("view").classList.remove("drawing");
  $("progress").hidden = true;
  $("generate").removeAttribute("aria-disabled");
  $("cancel").setAttribute("aria-disabled", "true");
  document.title = title;
  preview(null);
}

/** What is shown of a report of the server. */
function tell({ queued, active, progress, eta, preview: address, ahead }) {
  if (!running) return;
  if (queued) {
    const text = ahead ? `Waiting: ${ahead} before this one` : "Waiting: next in the queue";
    showProgress(text, null);
    say(text);
  } else if (active) {
    const share = Math.min(progress ?? 0, 1);
    const left = eta >= 1 ? `, about ${Math.round(eta)} s left` : "";
    showProgress(
      share ? `Drawing, ${percent(share)}${left}` : "Getting ready: a new size or number of pictures compiles first",
      share || null,
    );
    say(share ? `Drawing, ${25 * Math.floor(4 * share)}%` : "Getting ready");
    if (address) preview(address);
  }
}

/** One request -> its pictures. */
async function draw(asked, report) {
  const drawing = new Drawing(asked, report, $("previews").checked);
  running.push(drawing);
  const answer = await drawing.run();
  const info = JSON.parse(answer.info);
  return Promise.all(
    answer.images.map((base64, i) =>
      picture(blobOf(base64), {
        request: asked,
        prompt: asked.prompt,
        seed: info.all_seeds?.[i] ?? info.seed,
        subseed: info.all_subseeds?.[i],
        text: info.infotexts?.[i] ?? "",
        stopped: drawing.stopped,
        name: `seed${info.all_seeds?.[i] ?? info.seed}.png`,
      }),
    ),
  );
}

/** A request for each value, a few at once -> one sheet. */
async function drawSheet(asked, across) {
  const seed = asked.seed >= 0 ? asked.seed : Math.floor(Math.random() * MOST_SEED);
  const requests = requestsOf(across, asked, seed),
    shares = requests.map(() => 0),
    drawn = [];
  let next = 0;
  const total = () => shares.reduce((sum, share) => sum + share, 0) / shares.length;
  const work = async () => {
    while (next < requests.length && !running.cancelled) {
      const i = next++;
      const report = ({ active, progress, preview: address }) => {
        if (!running || running.cancelled) return;
        shares[i] = Math.max(shares[i], active ? (progress ?? 0) : 0);
        const text = `Drawing a sheet: ${drawn.filter(Boolean).length} of ${requests.length} done`;
        showProgress(text, total() || null);
        say(text);
        if (address) preview(address);
      };
      [drawn[i]] = await draw(requests[i], report);
      shares[i] = 1;
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  } catch (error) {
    for (const drawing of running) drawing.cancel(); // one is refused: the others would be for nothing
    throw error;
  }
  if (running.cancelled) throw new DOMException("", "AbortError");
  const { blob, text } = await sheetOf(across, drawn);
  return [
    await picture(blob, {
      request: { ...asked, seed },
      prompt: asked.prompt,
      seed,
      text,
      across,
      name: `sheet-seed${seed}.png`,
    }),
  ];
}

export async function generate() {
  if (running) return;
  clearErrors();
  let asked, across;
  try {
    across = axis();
    asked = { ...request(sourceFields()), ...controlFields() };
  } catch (refused) {
    return showError(refused.path ? { fields: [refused] } : refused);
  }
  begin();
  const from = performance.now();
  try {
    const pictures = across ? await drawSheet(asked, across) : await draw(asked, tell);
    end();
    if (!pictures.length) return say("Cancelled");
    add(pictures);
    const [{ seed, stopped }] = pictures,
      count = pictures.length;
    const what = across ? `a sheet of ${across.values.length}` : count === 1 ? "1 picture" : `${count} pictures`;
    say(`${stopped ? "Stopped early" : "Done"}: ${what}, seed ${seed}, ${seconds(performance.now() - from)}`);
  } catch (error) {
    const cancelled = error.name === "AbortError" || (running?.cancelled && error.status === 503);
    end();
    if (cancelled) say("Cancelled");
    else {
      say("");
      showError(error);
    }
  }
}

export function cancel() {
  if (!running) return;
  running.cancelled = true;
  showProgress("Cancelling", null);
  say("Cancelling");
  for (const drawing of running) drawing.cancel();
}
