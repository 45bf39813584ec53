// Sheets that compare: one setting takes several values, each is drawn by a request, and all stand side by side.

import { $, put } from "./fields.js";
import { withText } from "./png.js";

const MOST = 24; // pictures of one sheet
/** The axes as `generate --grid` has them. */
const FLAGS = { sampler_name: "sampler", cfg_scale: "guidance-scale", steps: "steps", seed: "seed" };
const CAPTION = 15; // pixels of a caption's letters

/** "1, 3, 7.5" or "0..3" -> numbers. A refusal of the field "values" where it cannot be read. */
function readNumbers(text, whole) {
  const wrong = (message) => ({ fields: [{ path: ["values"], message }] });
  const numbers = [];
  for (const part of text.split(",").map((p) => p.trim())) {
    const range = /^(-?\d+)\s*\.\.\s*(-?\d+)$/.exec(part);
    if (range) for (let n = Number(range[1]); n <= Number(range[2]) && numbers.length <= MOST; n++) numbers.push(n);
    else if (part === "" || !Number.isFinite(Number(part)) || (whole && !Number.isInteger(Number(part))))
      throw wrong(
        whole
          ? "Whole numbers with commas between them are expected; 0..3 is 0, 1, 2, 3."
          : "Numbers with commas between them are expected.",
      );
    else numbers.push(Number(part));
  }
  if (new Set(numbers).size < numbers.length) throw wrong("A value is there twice.");
  if (numbers.length > MOST) throw wrong(`At most ${MOST} pictures fit on a sheet.`);
  return numbers;
}

/** The axis of the sheet: {name, label, values}, or null where none is chosen. */
export function axis() {
  const name = $("axis").value;
  if (!name) return null;
  const label = $("axis").selectedOptions[0].label;
  if (name !== "sampler_name") return { name, label, values: readNumbers($("values").value, name !== "cfg_scale") };
  const values = boxes()
    .filter((box) => box.checked)
    .map((box) => box.value);
  if (!values.length) throw { fields: [{ path: ["axis"], message: "Choose the samplers below." }] };
  if (values.length > MOST) throw { fields: [{ path: ["axis"], message: `At most ${MOST} pictures fit on a sheet.` }] };
  return { name, label, values };
}

/** The requests of a sheet, all with one seed but where the seed is the axis. */
export function requestsOf({ name, values }, request, seed) {
  return values.map((value) => ({ ...request, seed, batch_size: 1, [name]: value }));
}

/** Lays pictures out with captions. Resolves to a PNG whose text is the first picture's and the axis. */
export async function sheetOf({ name, label, values }, pictures) {
  const images = await Promise.all(pictures.map((one) => createImageBitmap(one.blob)));
  const columns = Math.min(values.length, 6),
    rows = Math.ceil(values.length / columns),
    gap = 12;
  const widest = Math.max(...images.map((image) => image.width));
  const times = Math.max(1, Math.floor(160 / widest)); // small ones are enlarged
  const width = Math.max(112, ...images.map((image) => times * image.width)),
    height = times * Math.max(...images.map((image) => image.height));
  const canvas = document.createElement("canvas"),
    context = canvas.getContext("2d"),
    line = Math.round(CAPTION * 1.3);
  const font = `${CAPTION}px system-ui, sans-serif`;
  context.font = font;
  const captions = values.map((value) => wrapped(context, String(value), width));
  const below = line * Math.max(...captions.map((lines) => lines.length)) + 14,
    top = 2 * line;
  canvas.width = gap + columns * (width + gap); // which also clears the font
  canvas.height = top + rows * (height + below);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#191b20";
  context.textBaseline = "top";
  context.imageSmoothingEnabled = false;
  context.font = `600 ${font}`;
  context.fillText(label, gap, gap / 1.5);
  context.font = font;
  images.forEach((image, i) => {
    const x = gap + (i % columns) * (width + gap),
      y = top + Math.floor(i / columns) * (height + below);
    context.drawImage(
      image,
      x + Math.floor((width - times * image.width) / 2),
      y,
      times * image.width,
      times * image.height,
    );
    captions[i].forEach((text, k) =>
      context.fillText(text, x + (width - context.measureText(text).width) / 2, y + height + 5 + k * line),
    );
  });
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const own = name === "sampler_name" ? values.map((value) => boxes().find((box) => box.value === value).own) : values;
  const text = `${pictures[0].text}, Grid: "${FLAGS[name]}=${own.join(",")}"`;
  return { blob: await withText(blob, "parameters", text), text };
}

/** A caption in at most two lines, cut where it is longer. */
function wrapped(context, text, width) {
  const lines = [""];
  for (const word of text.split(/(?<=\s)/)) {
    if (context.measureText(lines.at(-1) + word).width > width && lines.at(-1) && lines.length < 2) lines.push("");
    lines[lines.length - 1] += word;
  }
  return lines.map((line) => {
    let cut = line.trim();
    while (cut.length > 1 && context.measureText(cut).width > width) cut = `${cut.slice(0, -2)}…`;
    return cut;
  });
}

const boxes = () => [...document.querySelectorAll("#axis-samplers input")];

/** samplers: the server's list; the last of a sampler's other names is the one that commands take. */
export function offerAxes(samplers) {
  const labels = samplers.map(({ name, aliases }) => {
    const box = Object.assign(document.createElement("input"), {
      type: "checkbox",
      value: name,
      own: aliases?.at(-1) ?? name,
    });
    const label = Object.assign(document.createElement("label"), { className: "check" });
    label.append(box, ` ${name}`);
    return label;
  });
  $("axis-samplers").replaceChildren($("axis-samplers").querySelector("legend"), ...labels);
}

/** Puts an axis, as `axis` gave it, back into the form; null: no sheet. */
export function useAxis(across) {
  put($("axis"), across?.name ?? "");
  if (across && across.name !== "sampler_name") put($("values"), across.values.join(", "));
  for (const box of boxes())
    box.checked = across?.values.some((value) => [box.value, box.own].includes(value)) ?? false;
}

/** Reads the axis out of a sheet's text ("guidance-scale=1,3"); null where there is none that the page has. */
export function axisOf({ Grid: text = "" }) {
  const [flag, values = ""] = text.split("=");
  const name = Object.keys(FLAGS).find((each) => FLAGS[each] === flag.replaceAll("_", "-"));
  return name ? { name, values: values.split(",") } : null;
}

const USUAL = { steps: "4, 8, 16, 32", cfg_scale: "1, 3, 5, 7.5", seed: "0..7" };
$("axis").addEventListener("input", () => {
  const name = $("axis").value;
  $("values-field").hidden = !(name in USUAL);
  $("axis-samplers").hidden = name !== "sampler_name";
  if (name in USUAL) $("values").value = USUAL[name];
  $("grid-note").textContent = name ? $("axis").selectedOptions[0].label : "";
});
