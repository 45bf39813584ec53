// The stage shows the pictures of one request, the strip those of the session. Each is exposed once, by its prompt.

import { $ } from "./fields.js";

const KEPT = 300; // pictures of a session; the oldest give way
const groups = []; // [{pictures: [picture, ...], item}]
let shown = null; // {group, picture}
let smooth = false,
  actual = false;
let onShow = () => {};

/** blob -> {blob, url, width, height, ...more}; rejects if it is no picture. */
export async function picture(blob, more) {
  const url = URL.createObjectURL(blob);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new Error("This is no picture that the browser can show.");
  }
  return { blob, url, width: image.naturalWidth, height: image.naturalHeight, ...more };
}

/** The picture's name: its prompt and its seed, which tells the pictures of one prompt apart. */
const nameOf = ({ prompt, seed, file }) =>
  file ?? `${prompt || "Picture without a prompt"}${seed == null ? "" : `, seed ${seed}`}`;

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const imageOf = ({ url, width, height }, alt) => element("img", { src: url, width, height, alt, decoding: "async" });

/** Adds the pictures of one request and shows them. */
export function add(pictures) {
  const group = { pictures };
  for (const one of pictures) {
    one.group = group;
    one.thumb = imageOf(one, "");
    one.button = element("button", { type: "button" });
    one.button.setAttribute("aria-label", `Show ${nameOf(one)}`);
    one.button.addEventListener("click", () => show(one));
    one.item = element("li", {}, one.thumb, one.button);
  }
  groups.unshift(group);
  $("strip").prepend(...pictures.map((one) => one.item));
  while (groups.length > 1 && groups.reduce((sum, g) => sum + g.pictures.length, 0) > KEPT) {
    for (const old of groups.pop().pictures) {
      old.item.remove();
      URL.revokeObjectURL(old.url);
    }
  }
  show(pictures[0]);
}

/** Shows a picture, and those that were drawn with it. */
export function show(one) {
  const other = shown?.picture.group !== one.group;
  if (other) {
    for (const old of shown?.picture.group.pictures ?? []) old.thumb.alt = nameOf(old);
    const many = one.group.pictures.length > 1;
    $("sheet").replaceChildren(...one.group.pictures.map((p) => figureOf(p, many)));
    $("sheet").classList.toggle("many", many);
    for (const p of one.group.pictures) p.thumb.alt = ""; // it is on the stage
  }
  for (const old of shown?.picture.group.pictures ?? []) old.button.removeAttribute("aria-current");
  shown = { picture: one };
  one.button.setAttribute("aria-current", "true");
  for (const p of one.group.pictures) {
    p.figure.classList.toggle("shown", p === one);
    p.figure.querySelector("button")?.setAttribute("aria-pressed", String(p === one));
  }
  $("empty").hidden = true;
  $("sheet").hidden = false;
  $("facts").classList.remove("none");
  showText(one.text || "This picture has no settings in it.");
  Object.assign($("download"), { href: one.url, download: one.name });
  $("use").hidden = !one.request && !one.texts;
  fit();
  onShow(one, other);
}

/** The settings as they are in the PNG; the prompts stand out. */
function showText(text) {
  const at = text.lastIndexOf("\nSteps:") + 1 || text.length;
  $("text").replaceChildren(element("span", { className: "said", textContent: text.slice(0, at) }), text.slice(at));
}

function figureOf(one, many) {
  one.figure = element("figure", {}, imageOf(one, nameOf(one)));
  if (many) {
    const button = element("button", { type: "button", textContent: one.caption ?? `seed ${one.seed}` });
    one.figure.append(element("figcaption", {}, button));
    one.figure.addEventListener("click", () => show(one));
  }
  return one.figure;
}

/** The factor at which `count` pictures fill the stage; a whole one where it enlarges, so that pixels stay squares. */
function factorFor({ width, height }, count, [roomX, roomY]) {
  let best = 0,
    columns = 1;
  for (let c = 1; c <= count; c++) {
    const rows = Math.ceil(count / c),
      caption = count > 1 ? 46 : 0;
    const factor = Math.min((roomX - 12 * (c - 1)) / (c * width), (roomY - caption * rows) / (rows * height));
    if (factor > best) [best, columns] = [factor, c];
  }
  if (best >= 2 && !smooth) best = Math.floor(best);
  else if (best >= 1 && best < 2) best = 1;
  return [Math.max(best, count > 4 ? Math.min(1, 96 / width) : 0.05), columns];
}

function fit() {
  const view = $("view").getBoundingClientRect();
  const room = [view.width - 6, view.height - 6]; // the outline of the shown one is beside it
  if (shown) {
    const { pictures } = shown.picture.group;
    const [factor, columns] = actual
      ? [1, Math.ceil(Math.sqrt(pictures.length))]
      : factorFor(pictures[0], pictures.length, room);
    $("sheet").style.gridTemplateColumns = `repeat(${columns}, auto)`;
    $("sheet").classList.toggle("actual", actual);
    for (const one of pictures) size(one.figure.firstElementChild, one, factor);
  }
  const preview = $("preview");
  if (preview.naturalWidth) {
    const its = { width: preview.naturalWidth, height: preview.naturalHeight };
    size(preview, its, factorFor(its, 1, room)[0]);
  }
}

function size(image, { width, height }, factor) {
  image.style.width = `${Math.round(width * factor)}px`;
  image.style.height = `${Math.round(height * factor)}px`;
  image.classList.toggle("pixels", factor >= 2 && !smooth);
}

/** Shows a live preview (a data: address), or nothing. */
export async function preview(address) {
  const image = $("preview");
  if (!address) {
    image.hidden = true;
    image.removeAttribute("src");
    return;
  }
  if (!address.startsWith("data:image/")) return;
  image.src = address;
  await image.decode().catch(() => {});
  image.hidden = !image.naturalWidth || !image.src;
  fit();
}

export const current = () => shown?.picture ?? null;
export const whenShown = (call) => (onShow = call);

function toggle(button, change) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(change()));
    fit();
  });
}

toggle($("smooth"), () => (smooth = !smooth));
toggle($("actual"), () => (actual = !actual));
new ResizeObserver(fit).observe($("view"));

// Arrow keys walk along the strip.
$("strip").addEventListener("keydown", (event) => {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const next = step && event.target.closest("li")?.[step]?.querySelector("button");
  if (next) {
    event.preventDefault();
    next.focus();
  }
});
