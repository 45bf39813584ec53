// What the server has: models, samplers, sizes, limits of fields, LoRAs, controls; and how many tokens a prompt is.

import { ask } from "./api.js";
import { offerControls, offerWords } from "./extras.js";
import { $, bound, first, limits, offer, put } from "./fields.js";
import { offerAxes } from "./sheet.js";

const EXAMPLES = {
  emoji: [
    "a 3d render of a red apple on a yellow background",
    "a flat emoji of a snail on a light blue background",
    "a noto emoji of a cactus on a white background",
  ],
};

/** The usual sizes around the model's own: square, upright, wide, larger. */
function offerSizes({ size, unit: multiple = 8, max_pixels: most = Infinity }) {
  if (!size) return;
  const width = size,
    height = size;
  Object.assign(limits, { multiple, area: width * height });
  for (const id of ["width", "height"]) Object.assign($(id), { placeholder: size, step: multiple, min: multiple });
  const longer = (side) => Math.round((1.5 * side) / multiple) * multiple;
  const sizes = [
    [width, height],
    [width, longer(height)],
    [longer(width), height],
    [longer(width), longer(height)],
  ];
  const buttons = sizes
    .filter(([w, h]) => w * h <= most)
    .map(([w, h]) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const shape = document.createElement("i"),
        longest = Math.max(longer(width), longer(height));
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
  offer(
    select,
    models.map(({ title, model_name }) => ({ value: title, label: model_name, aliases: [model_name] })),
  );
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

/** Asks for all lists and puts them into the form. */
export async function load() {
  const paths = [
    "sd-models",
    "options",
    "samplers",
    "schedulers",
    "upscalers",
    "latent-upscale-modes",
    "loras",
    "embeddings",
    "sdjax",
  ];
  const others = ["controlnet/model_list", "controlnet/module_list", "openapi.json"];
  const lists = await Promise.all([...paths.map((p) => `sdapi/v1/${p}`), ...others].map((p) => ask(p)));
  const [models, options, samplers, schedulers, upscalers, latents, loras, embeddings, about, controls, modules, api] =
    lists;
  for (const path of ["/sdapi/v1/img2img", "/sdapi/v1/txt2img"]) {
    bound(api.paths[path].post.requestBody.content["application/json"].schema.properties);
  }
  offerModels(models, options.sd_model_checkpoint);
  offer(
    $("sampler"),
    samplers.map(({ name, aliases }) => ({ value: name, aliases })),
  );
  if (samplers.some(({ name }) => name === "DPM++ 2M")) first("sampler_name", "DPM++ 2M");
  offer(
    $("scheduler"),
    schedulers.map(({ name, label, aliases }) => ({ value: name, label, aliases: aliases ?? [] })),
  );
  const enlarge = [...latents, ...upscalers].filter(({ name }) => name !== "None");
  offer(
    $("hr-upscaler"),
    enlarge.map(({ name }) => ({ value: name })),
  );
  offerWords(loras, embeddings);
  offerControls(controls.model_list ?? [], modules.module_list ?? []);
  offerAxes(samplers);
  offerSizes(about);
  if (about.guidance_scale) first("cfg_scale", about.guidance_scale);
  if (about.few_steps) first("steps", about.few_steps);
  countTokens();
  for (const name of ["sampler_name", "scheduler", "hr_upscaler"])
    first(name, document.getElementsByName(name)[0].value);
}

/** Counts the prompts' tokens a moment after each change. */
function countTokens() {
  for (const id of ["prompt", "negative"]) {
    const field = $(id),
      note = $(`${id}-tokens`);
    let timer,
      asked = 0;
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
