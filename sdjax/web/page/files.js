// Pictures from files: their settings are read, the form is filled, and what was in it can be had back.

import { ask } from "./api.js";
import { say } from "./draw.js";
import { $, clearErrors, restore, showError, snapshot, useTexts } from "./fields.js";
import { add, picture } from "./gallery.js";
import { axisOf, useAxis } from "./sheet.js";
import { addressOf } from "./source.js";

/** Puts the texts of a picture into the form. Returns how many of them it knew. */
export function fill(texts) {
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
    Object.assign(its, {
      text: info,
      texts: known ? parameters : null,
      prompt: parameters?.Prompt ?? "",
      seed: parameters?.Seed,
    });
    add([its]);
    if (known)
      offerBack(
        before,
        `Settings of ${file.name} are in the form.` +
          (parameters["Init image"] ? " The picture it started from is not in the file." : ""),
      );
    else say(`${file.name} has no settings in it`);
  } catch (error) {
    showError(error);
  }
}

function offerBack(before, text) {
  const button = Object.assign(document.createElement("button"), {
    type: "button",
    textContent: "Put the old ones back",
  });
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
document.addEventListener(
  "dragenter",
  (event) => hasFiles(event) && veil(++depth > 0 && !event.target.closest?.(".drop")),
);
document.addEventListener(
  "dragleave",
  (event) => hasFiles(event) && (depth = Math.max(0, depth - 1)) === 0 && veil(false),
);
document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
document.addEventListener("dropped", () => veil((depth = 0)));
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  veil((depth = 0));
  if (event.dataTransfer.files[0]) readSettings(event.dataTransfer.files[0]);
});
