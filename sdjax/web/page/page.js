// Wires the page: lists of the server, buttons and keys, dropped files, token counts, the theme.

import { ask } from "./api.js";
import { cancel, generate, say } from "./draw.js";
import { offerControls, offerWords, useControls } from "./extras.js";
import { $, bound, clearErrors, first, limits, offer, put, reset, restore, showError, snapshot, usePayload, useTexts } from "./fields.js";
import { add, current, picture, whenShown } from "./gallery.js";
import { axisOf, offerAxes, useAxis } from "./sheet.js";
import { addressOf, startFrom, useSource } from "./source.js";

const EXAMPLES = {
  emoji: [
    "a 3d render of a red apple on a yellow background",
    "a flat emoji of a snail on a light blue background",
    "a noto emoji of a cactus on a white background",
  ],
};

/* What the server has */

/** The usual sizes around the model's own: square, upright, wide, larger. */
function offerSizes({ size, unit: multiple = 8, max_pixels: most = Infinity }) {
  if (!size) return;
  const width = size, height = size;
  Object.assign(limits, { multiple, area: width * height });
  for (const id of ["width", "height"]) Object.assign($(id), { placeholder: size, step: multiple, min: multiple });
  const longer = (side) => Math.round((1.5 * side) / multiple) * multiple;
  const sizes = [[width, height], [width, longer(height)], [longer(width), height], [longer(width), longer(height)]];
  const buttons = sizes.filter(([w, h]) => w * h <= most).map(([w, h]) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const shape = document.createElement("i"), longest = Math.max(longer(width), longer(height));
    shape.style.width = `${(12 * w) / longest}px`;
    shape.style.height = `${(12 * h) / longest}px`;
    button.append(shape, `${w} × ${h}`);
    button.addEventListener("click", () => (put("width", w), put("height", h)));
    return button;
  });
  $("presets").replaceChildren(...buttons);
}

function offerModels(models, served) {
  const select = $("model-choice").querySelector("select");
  offer(select, models.map(({ title, model_name }) => ({ value: title, label: model_name, aliases: [model_name] })));
  const now = models.find(({ title, model_name }) => title === served || model_name === served) ?? models[0];
  if (now) first("sd_model_checkpoint", now.title);
  $("model-choice").hidden = models.length < 2;
  $("model-name").textContent = models.length === 1 ? models[0].model_name : "";
  const examples = EXAMPLES[now?.model_name] ?? [];
  $("examples").replaceChildren(
    ...examples.map((text) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      button.addEventListener("click", () => (put("prompt", text), $("prompt").focus()));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
}

async function load() {
  const paths = ["sd-models", "options", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "loras", "embeddings", "sdjax"];
  const others = ["controlnet/model_list", "controlnet/module_list", "openapi.json"];
  const lists = await Promise.all([...paths.map((p) => `sdapi/v1/${p}`), ...others].map((p) => ask(p)));
  const [models, options, samplers, schedulers, upscalers, latents, loras, embeddings, about, controls, modules, api] = lists;
  for (const path of ["/sdapi/v1/img2img", "/sdapi/v1/txt2img"]) {
    bound(api.paths[path].post.requestBody.content["application/json"].schema.properties);
  }
  offerModels(models, options.sd_model_checkpoint);
  offer($("sampler"), samplers.map(({ name, aliases }) => ({ value: name, aliases })));
  if (samplers.some(({ name }) => name === "DPM++ 2M")) first("sampler_name", "DPM++ 2M");
  offer($("scheduler"), schedulers.map(({ name, label, aliases }) => ({ value: name, label, aliases: aliases ?? [] })));
  const enlarge = [...latents, ...upscalers].filter(({ name }) => name !== "None");
  offer($("hr-upscaler"), enlarge.map(({ name }) => ({ value: name })));
  offerWords(loras, embeddings);
  offerControls(controls.model_list ?? [], modules.module_list ?? []);
  offerAxes(samplers);
  offerSizes(about);
  if (about.guidance_scale) first("cfg_scale", about.guidance_scale);
  if (about.few_steps) first("steps", about.few_steps);
  countTokens();
  for (const name of ["sampler_name", "scheduler", "hr_upscaler"]) first(name, document.getElementsByName(name)[0].value);
}

/** Loads what the server has; asks again while it does not answer. */
async function start() {
  const kept = stored();
  for (let said = false; ; said = true) {
    try {
      await load();
      break;
    } catch (error) {
      if (!said) $("server").textContent = "No answer from the server, trying again";
      console.debug(error);
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  $("server").textContent = "";
  if (kept) restore(kept);
  $("form").addEventListener("input", keep);
}

/* The form's values stay while the browser's tab does */

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem("sdjax.form"));
  } catch {
    return null;
  }
}

function keep() {
  try {
    sessionStorage.setItem("sdjax.form", JSON.stringify(snapshot()));
  } catch {
    // storage is switched off or full
  }
}

/** Counts the prompts' tokens a moment after each change. */
function countTokens() {
  for (const id of ["prompt", "negative"]) {
    const field = $(id), note = $(`${id}-tokens`);
    let timer, asked = 0;
    const count = async () => {
      const turn = ++asked;
      try {
        const { tokens, limit } = await ask("sdapi/v1/sdjax/tokens", { prompt: field.value });
        if (turn === asked) note.textContent = tokens ? `${tokens} of ${limit} tokens` : "";
      } catch {
        note.textContent = "";
      }
    };
    field.addEventListener("input", () => (clearTimeout(timer), (timer = setTimeout(count, 300))));
    if (field.value) count();
  }
}

/* Pictures from files: settings are read, the form is filled, and what was in it can be had back */

/** Puts the texts of a picture into the form. Returns how many of them it knew. */
function fill(texts) {
  const known = useTexts(texts);
  if (known) useAxis(axisOf(texts));
  return known;
}

async function readSettings(file) {
  clearErrors();
  let its;
  try {
    its = await picture(file, { file: file.name, name: file.name, prompt: "" });
    const { info, parameters } = await ask("sdapi/v1/png-info", { image: await addressOf(file) });
    const before = snapshot();
    const known = fill(parameters ?? {});
    Object.assign(its, { text: info, texts: known ? parameters : null, prompt: parameters?.Prompt ?? "", seed: parameters?.Seed });
    add([its]);
    if (known) offerBack(before, `Settings of ${file.name} are in the form.${parameters["Init image"] ? " The picture it started from is not in the file." : ""}`);
    else say(`${file.name} has no settings in it`);
  } catch (error) {
    showError(error);
  }
}

function offerBack(before, text) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Put the old ones back" });
  button.addEventListener("click", () => {
    restore(before);
    $("told").hidden = true;
    $("prompt").focus();
  });
  $("told").replaceChildren(`${text} `, button);
  $("told").hidden = false;
}

$("read").addEventListener("click", () => $("read-file").click());
$("read-file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) readSettings(file);
  event.target.value = "";
});

let depth = 0; // dragenter and dragleave come for each element on the way
const veil = (on) => ($("veil").hidden = !on);
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => hasFiles(event) && veil(++depth > 0 && !event.target.closest?.(".drop")));
document.addEventListener("dragleave", (event) => hasFiles(event) && (depth = Math.max(0, depth - 1)) === 0 && veil(false));
document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
document.addEventListener("dropped", () => veil((depth = 0)));
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  veil((depth = 0));
  if (event.dataTransfer.files[0]) readSettings(event.dataTransfer.files[0]);
});

/* Buttons */

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("told").hidden = true;
  generate();
});
$("cancel").addEventListener("click", cancel);
$("swap").addEventListener("click", () => {
  const [width, height] = [$("width").value, $("height").value];
  put("width", height);
  put("height", width);
});
$("dice").addEventListener("click", () => put("seed", ""));
$("reuse").addEventListener("click", () => current()?.seed != null && put("seed", current().seed));
$("reset").addEventListener("click", reset);
$("use").addEventListener("click", () => {
  const { request, seed, texts, across } = current();
  if (request) {
    usePayload(request, seed);
    useControls(request);
    useAxis(across ?? null);
    useSource(request);
  } else fill(texts);
  say("The form has this picture's settings");
});
$("start").addEventListener("click", () => startFrom(current().blob).then(() => $("source").scrollIntoView({ block: "nearest" })));
$("copy").hidden = !navigator.clipboard; // it is there on https and localhost alone
$("copy").addEventListener("click", () => navigator.clipboard.writeText($("text").textContent).then(() => say("Copied")));
whenShown((shown) => (shown.seed == null ? $("reuse").setAttribute("aria-disabled", "true") : $("reuse").removeAttribute("aria-disabled")));

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "Escape") cancel();
});

$("hires-on").addEventListener("input", () => {
  const on = $("hires-on").checked;
  $("hires-fields").hidden = !on;
  $("hires-note").textContent = on ? `${$("hr-scale").value} ×` : "";
});
$("hr-scale").addEventListener("input", () => $("hires-on").checked && ($("hires-note").textContent = `${$("hr-scale").value} ×`));

/* Dark or light */

const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const showTheme = () => $("theme").setAttribute("aria-pressed", String(isDark()));
$("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("sdjax.theme", theme);
  } catch {
    // storage is switched off: the choice ends with the page
  }
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
showTheme();
start();
