// Pickers of what the server has besides a model: LoRAs and embeddings (words of the prompt), and controls. Empty ones
// stay hidden.

import { $, offer, put } from "./fields.js";
import { addressOf, takesFiles } from "./source.js";

const MOST_UNITS = 3;
const TAG = /<lora:([^:>]+)(?::([^>]*))?>/g;
let controlModels = [],
  modules = [];

/* LoRAs and embeddings: the prompt says which, so that a prompt is all that one needs to keep */

const prompt = $("prompt");

function write(text) {
  prompt.value = text;
  prompt.dispatchEvent(new Event("input", { bubbles: true }));
}

const escaped = (name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const without = (name) => prompt.value.replace(new RegExp(`\\s*<lora:${escaped(name)}(:[^>]*)?>`, "g"), "");

function listWords() {
  const tags = [...prompt.value.matchAll(TAG)];
  $("words-list").replaceChildren(
    ...tags.map(([, name, weight = "1"]) => {
      const button = Object.assign(document.createElement("button"), {
        type: "button",
        textContent: `${name} ${weight}`,
      });
      button.setAttribute("aria-label", `Remove LoRA ${name} ${weight}`);
      button.addEventListener("click", () => (write(without(name)), $("lora").focus()));
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  $("words-note").textContent = tags.length ? tags.map(([, name]) => name).join(", ") : "";
}

prompt.addEventListener("input", listWords);
$("lora-add").addEventListener("click", () => {
  const weight = $("lora-weight").value || "1";
  write(`${without($("lora").value).trimEnd()} <lora:${$("lora").value}:${weight}>`.trimStart());
});
$("embedding-add").addEventListener("click", () =>
  write(`${prompt.value.trimEnd()} ${$("embedding").value}`.trimStart()),
);

/** loras: the server's list; embeddings: {loaded: {name: ...}}. */
export function offerWords(loras, embeddings) {
  const words = Object.keys(embeddings?.loaded ?? {});
  offer(
    $("lora"),
    loras.map(({ name }) => ({ value: name })),
  );
  offer(
    $("embedding"),
    words.map((name) => ({ value: name })),
  );
  $("lora-row").hidden = !loras.length;
  $("embedding-row").hidden = !words.length;
  $("words").hidden = !loras.length && !words.length;
  listWords();
}

/* Controls */

export function offerControls(models, preprocessors) {
  controlModels = models.filter((name) => name.toLowerCase() !== "none");
  modules = preprocessors;
  $("controls").hidden = !controlModels.length;
}

const units = () => [...document.querySelectorAll("#units .unit")];

function noteUnits() {
  const count = units().length;
  $("controls-note").textContent = count ? String(count) : "";
  $("unit-add").hidden = count >= MOST_UNITS;
}

/** Adds the fields of one more control, and puts in what `given`, a unit of a request, says. */
function addUnit(given = {}) {
  const unit = $("unit").content.cloneNode(true).firstElementChild;
  const part = (name) => unit.querySelector(`[data-field="${name}"]`);
  unit.querySelector("legend").textContent = `Control ${units().length + 1}`;
  offer(
    part("model"),
    controlModels.map((name) => ({ value: name })),
  );
  offer(
    part("module"),
    modules.map((name) => ({ value: name })),
  );
  const showImage = (address, text) => {
    unit.address = address;
    Object.assign(unit.querySelector("img"), { src: address, hidden: false });
    unit.querySelector(".drop span").textContent = text;
  };
  takesFiles(unit.querySelector(".drop"), async (file) => showImage(await addressOf(file), file.name));
  unit.querySelector("[data-remove]").addEventListener("click", () => {
    unit.remove();
    noteUnits();
    $("unit-add").focus();
  });
  const { image, ...values } = given;
  for (const [name, value] of Object.entries(values)) if (part(name)) put(part(name), value);
  if (image) showImage(image, "Picture that steers");
  $("units").append(unit);
  noteUnits();
  return part("image");
}

$("unit-add").addEventListener("click", () => addUnit().focus());

/** Puts the controls of a request, as it was sent, back into the form. */
export function useControls({ alwayson_scripts }) {
  for (const unit of units()) unit.remove();
  for (const given of alwayson_scripts?.controlnet.args ?? []) addUnit(given);
  noteUnits();
}

/** What a request has of the controls ({alwayson_scripts}), or {}. */
export function controlFields() {
  const args = units().map((unit) => {
    const fields = { enabled: true, image: unit.address ?? null };
    for (const part of unit.querySelectorAll("[data-field]")) {
      if (part.type === "file") continue;
      fields[part.dataset.field] =
        part.type === "number" ? (part.value === "" ? null : Number(part.value)) : part.value;
    }
    return fields;
  });
  return args.length ? { alwayson_scripts: { controlnet: { args } } } : {};
}
