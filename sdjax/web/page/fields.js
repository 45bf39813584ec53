// The form: its controls carry the request's own names. So a request is read from it, and a refusal finds its control.

export const $ = (id) => document.getElementById(id);
const form = $("form");
const control = (name) => form.elements[name];

/** Where a PNG's text (the web UI's names) goes. */
const TEXTS = {
  Prompt: "prompt",
  "Negative prompt": "negative_prompt",
  Steps: "steps",
  Sampler: "sampler_name",
  "Schedule type": "scheduler",
  "CFG scale": "cfg_scale",
  Seed: "seed",
  "Clip skip": "CLIP_stop_at_last_layers",
  "Variation seed": "subseed",
  "Variation seed strength": "subseed_strength",
  Eta: "eta",
  "Hires upscale": "hr_scale",
  "Hires steps": "hr_second_pass_steps",
  "Hires upscaler": "hr_upscaler",
  "Mask blur": "mask_blur",
};
/** What is not in a text is as at first, for these: otherwise "use these" would draw another picture. */
const RESET = [
  "negative_prompt",
  "scheduler",
  "CLIP_stop_at_last_layers",
  "subseed",
  "subseed_strength",
  "eta",
  "width",
  "height",
];
/** What the model's sizes are like: a multiple of `multiple`, about `area` pixels. The server says more exactly. */
export const limits = { multiple: 8, area: 512 * 512 };
const FIRST = {}; // name -> the value at first

const OVERRIDES = ["sd_model_checkpoint", "CLIP_stop_at_last_layers"];
const SOURCE = ["denoising_strength", "mask_blur", "inpainting_fill", "inpaint_full_res"];
const HIRES = ["enable_hr", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_strength"];
const LATER = new Set([...OVERRIDES, ...SOURCE, ...HIRES]);
const TEXTUAL = ["prompt", "negative_prompt"];

/** Puts a number beside each slider: any value can be typed, also beyond the slider's end. */
function pairSliders() {
  for (const range of document.querySelectorAll(".slider > input[type=range]")) {
    const number = document.createElement("input");
    number.type = "number";
    number.value = range.value;
    number.min = range.min;
    number.max = range.dataset.most ?? range.max;
    number.step = range.dataset.step ?? range.step;
    number.setAttribute("aria-label", `${range.labels[0].textContent.trim()}, as a number`);
    range.after(number);
    range.paired = number;
    range.addEventListener("input", () => (number.value = range.value));
    number.addEventListener("input", () => (range.value = number.value || range.defaultValue));
  }
}

/** Puts a value into a control as if it was typed. */
export function put(name, value) {
  const element = typeof name === "string" ? control(name) : name;
  if (!element) return;
  if (element.type === "checkbox") element.checked = value === true || value === "true";
  else if (element.tagName === "SELECT") choose(element, value);
  else element.value = value;
  element.dispatchEvent(new Event("input", { bubbles: true }));
  if (element.paired) element.paired.value = value;
}

/** Chooses an option by its value, its label or one of its other names, letters' case aside. */
function choose(select, value) {
  const same = (text) => text?.toLowerCase() === String(value).toLowerCase();
  const found = [...select.options].find((o) => same(o.value) || same(o.label) || o.aliases?.some(same));
  if (found) select.value = found.value;
}

/** Fills a select. rows: [{value, label, aliases}]. */
export function offer(select, rows) {
  const kept = select.value;
  select.replaceChildren(
    ...rows.map(({ value, label = value, aliases = [] }) => Object.assign(new Option(label, value), { aliases })),
  );
  if (kept) choose(select, kept);
}

/** A control's value; null where nothing is typed. What the browser itself sees to be wrong goes into `wrong`. */
function read(name, wrong) {
  const element = control(name);
  if (element.type === "checkbox") return element.checked;
  const typed = element.paired ?? element;
  if (element.longest < [...element.value].length)
    wrong.push({ path: [name], message: `At most ${element.longest} characters are read.` });
  if (!typed.validity.valid) wrong.push({ path: [name], message: typed.validationMessage });
  if (typed.type === "number" || "number" in element.dataset) return typed.value === "" ? null : Number(typed.value);
  return ["true", "false"].includes(element.value) ? element.value === "true" : element.value;
}

/** Takes the limits of fields from the server's own description of a request (JSON Schema). */
export function bound(properties) {
  for (const [name, { minimum, maximum, maxLength, description }] of Object.entries(properties)) {
    const element = control(name),
      typed = element?.paired ?? element;
    if (typed?.type === "number") {
      if (minimum !== undefined && !["width", "height"].includes(name)) typed.min = minimum;
      if (maximum !== undefined) typed.max = maximum;
    }
    if (TEXTUAL.includes(name)) element.longest = maxLength;
    if (description && element?.labels) for (const label of element.labels) label.title = description;
  }
}

/** Reads the request from the form. source: what image to image adds ({init_images, mask}), or null. */
export function request(source) {
  const wrong = [];
  const given = (names) => {
    const values = names.map((name) => [name, read(name, wrong)]);
    return Object.fromEntries(values.filter(([, value]) => value !== null && value !== ""));
  };
  const named = [...new Set([...form.elements].map((e) => e.name).filter(Boolean))];
  const asked = { prompt: "", ...given(named.filter((name) => !LATER.has(name))) };
  if (asked.subseed_strength === 0) (delete asked.subseed_strength, delete asked.subseed);
  const overrides = given(OVERRIDES);
  if (control("sd_model_checkpoint").options.length < 2) delete overrides.sd_model_checkpoint;
  if (Object.keys(overrides).length) asked.override_settings = overrides;
  if (source) {
    const { denoising_strength, ...masked } = given(SOURCE);
    Object.assign(asked, source, { denoising_strength }, source.mask ? masked : {});
  } else if (control("enable_hr").checked) {
    const { hr_strength, ...hires } = given(HIRES);
    Object.assign(asked, hires, { denoising_strength: hr_strength });
  }
  if (wrong.length) throw { fields: wrong };
  return asked;
}

/** Puts a request, as it was sent, back into the form. */
export function usePayload(asked, seed) {
  const { override_settings = {}, denoising_strength, ...rest } = asked;
  const flat = { ...rest, ...override_settings, seed, enable_hr: asked.enable_hr ?? false };
  flat[asked.enable_hr ? "hr_strength" : "denoising_strength"] = denoising_strength;
  for (const name of RESET) put(name, flat[name] ?? FIRST[name]);
  for (const [name, value] of Object.entries(flat))
    if (control(name) && value != null && !RESET.includes(name)) put(name, value);
  put("batch_size", 1);
}

/** Puts what png-info found in a picture into the form. Returns how many fields it knew. */
export function useTexts(texts) {
  const known = Object.entries(TEXTS).filter(([text]) => texts[text] != null && texts[text] !== "");
  if (!known.length) return 0;
  for (const name of RESET) put(name, FIRST[name]);
  for (const [text, name] of known) put(name, String(texts[text]));
  const size = /^(\d+)x(\d+)$/.exec(texts.Size);
  if (size) (put("width", size[1]), put("height", size[2]));
  const hires = texts["Hires upscale"] != null;
  put("enable_hr", hires);
  if (texts["Denoising strength"] != null)
    put(hires ? "hr_strength" : "denoising_strength", texts["Denoising strength"]);
  put("batch_size", 1);
  return known.length;
}

/** All values, as text, to put them back later. */
export function snapshot() {
  const values = {};
  for (const element of form.elements) {
    if (element.name)
      values[element.name] = element.type === "checkbox" ? element.checked : (element.paired ?? element).value;
  }
  return values;
}

export function restore(values) {
  for (const [name, value] of Object.entries(values)) if (control(name)) put(name, value);
}

export const reset = () =>
  restore({ ...FIRST, ...Object.fromEntries(TEXTUAL.map((name) => [name, control(name).value])) });
export const first = (name, value) => (put(name, value), (FIRST[name] = value));

/* Refusals at their field */

/** The control that a refusal's path is about: by its name, by its place in a control's fields, or null. */
function controlOf(path) {
  const names = path.map(String);
  if (names[0] === "alwayson_scripts") return partOfUnit(names.slice(names.indexOf("args") + 1 || names.length));
  const key = names[0] === "override_settings" ? names[1] : names[0];
  if (!key) return null;
  if (key === "denoising_strength" && !$("hires-fields").hidden && $("source-on").hidden) return control("hr_strength");
  const other = { sampler_index: "sampler_name", n_iter: "batch_size", init_images: "", mask: "" }[key];
  const found = control(other ?? key);
  return found ?? document.querySelector(`[data-field="${CSS.escape(key)}"]`);
}

/** The part of a control that ["0", "image"] is about. []: that of the first one without a picture. */
function partOfUnit([number, name = "image"]) {
  const units = [...document.querySelectorAll("#units .unit")];
  const unit = number === undefined ? (units.find(({ address }) => !address) ?? units[0]) : units[number];
  return unit?.querySelector(`[data-field="${CSS.escape(name)}"]`);
}

export function clearErrors() {
  for (const note of document.querySelectorAll(".error")) note.remove();
  for (const element of document.querySelectorAll("[aria-invalid]")) {
    element.removeAttribute("aria-invalid");
    element.removeAttribute("aria-describedby");
  }
  $("alert").hidden = true;
}

/** Shows a refusal at the fields that it names, the rest beside the button; the focus goes to the first. */
export function showError({ message, fields = [] }) {
  const placed = [],
    rest = [];
  for (const { path, message: text } of fields) {
    const element = controlOf(path);
    if (!element) {
      rest.push(`${path.join(".")}: ${text}`);
      continue;
    }
    const note = document.createElement("p");
    note.className = "error";
    note.id = `error-${placed.length}`;
    note.textContent = text;
    for (let outer = element.closest("details"); outer; outer = outer.parentElement.closest("details"))
      outer.open = true;
    (element.closest(".field") ?? element.closest(".row") ?? element.parentElement).append(note);
    for (const target of [element, element.paired].filter(Boolean)) {
      target.setAttribute("aria-invalid", "true");
      target.setAttribute("aria-describedby", note.id);
    }
    placed.push(element);
  }
  const label = placed.map((e) => e.labels?.[0]?.textContent.split(":")[0].trim() ?? e.dataset.field).join(", ");
  const said = [rest.join(" "), placed.length ? `See ${label}.` : ""].filter(Boolean).join(" ");
  $("alert").textContent = fields.length ? `Not drawn. ${said}` : message;
  $("alert").hidden = false;
  placed[0]?.focus();
}

pairSliders();
Object.assign(FIRST, snapshot());
