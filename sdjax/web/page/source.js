// The picture from which another one starts, and the mask on it.

import { $, clearErrors, limits, put, showError } from "./fields.js";
import { picture } from "./gallery.js";
import { Mask } from "./mask.js";

let source = null; // {address, mask, picture}

/** Reads a file or blob as a data: address. */
export const addressOf = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/** Base64, with or without a data: address around it, -> Blob. */
export function blobOf(base64) {
  const bytes = atob(base64.slice(base64.indexOf(",") + 1));
  return new Blob([Uint8Array.from(bytes, (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

/** What a request of image to image has besides the form's fields, or null. */
export function sourceFields() {
  if (!source) return null;
  return { init_images: [source.address], ...(source.mask.empty() ? {} : { mask: source.mask.address() }) };
}

function note() {
  const masked = source && !source.mask.empty();
  $("mask-on").hidden = !masked;
  $("source-note").textContent = source
    ? `${source.picture.width} × ${source.picture.height}${masked ? ", masked" : ""}`
    : "";
}

/** The size at which a picture is drawn over: its own, or about the model's own area where it is much larger. */
function sizeFor({ width, height }) {
  const { multiple, area } = limits;
  const factor = width * height > 4 * area ? Math.sqrt(area / (width * height)) : 1;
  return [width, height].map((side) => Math.max(multiple, Math.floor((side * factor) / multiple) * multiple));
}

/** Puts the picture and the mask of a request, as it was sent, back into the form. */
export async function useSource({ init_images: [address] = [], mask, width, height }) {
  unset();
  if (!address) return;
  await startFrom(blobOf(address));
  if (mask) await source.mask.load(mask);
  put("width", width ?? "");
  put("height", height ?? "");
}

/** Starts from a picture, a blob. */
export async function startFrom(blob) {
  let its;
  try {
    its = await picture(blob);
  } catch (error) {
    clearErrors();
    return showError({ fields: [{ path: ["init_images"], message: error.message }] });
  }
  unset();
  const board = $("board");
  const image = Object.assign(new Image(), { src: its.url, alt: "The picture to start from" });
  board.replaceChildren(image);
  const brush = () => ({ size: Number($("brush").value), erase: $("erase").getAttribute("aria-pressed") === "true" });
  source = { picture: its, address: await addressOf(blob), mask: new Mask(board, its, brush, note) };
  $("brush").max = Math.max(8, Math.round(Math.max(its.width, its.height) / 2));
  put($("brush"), Math.max(2, Math.round(Math.max(its.width, its.height) / 8)));
  const [width, height] = sizeFor(its);
  put("width", width);
  put("height", height);
  $("source").open = true;
  $("source-on").hidden = false;
  $("source-drop").hidden = true;
  fit();
  note();
}

export function unset() {
  if (source) URL.revokeObjectURL(source.picture.url);
  source = null;
  $("board").replaceChildren();
  $("source-file").value = "";
  $("source-on").hidden = true;
  $("source-drop").hidden = false;
  note();
}

function fit() {
  if (!source) return;
  const { width, height } = source.picture,
    room = $("board").clientWidth - 16;
  if (room <= 0) return;
  const factor = Math.min(room / width, 480 / height);
  const whole = factor >= 2 ? Math.floor(factor) : factor;
  for (const element of $("board").querySelectorAll("img, canvas")) {
    element.style.width = `${width * whole}px`;
    element.style.height = `${height * whole}px`;
  }
}

/** Makes a label with a file input take dropped files too. take(file). */
export function takesFiles(label, take) {
  const input = label.querySelector("input[type=file]");
  input.addEventListener("change", () => input.files[0] && take(input.files[0]));
  label.addEventListener("dragover", (event) => {
    event.preventDefault();
    label.classList.add("over-it");
  });
  label.addEventListener("dragleave", () => label.classList.remove("over-it"));
  label.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    label.classList.remove("over-it");
    document.dispatchEvent(new Event("dropped"));
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
}

takesFiles($("source-drop"), startFrom);
new ResizeObserver(fit).observe($("board"));
$("undo").addEventListener("click", () => source.mask.undo());
$("clear").addEventListener("click", () => source.mask.clear());
$("invert").addEventListener("click", () => source.mask.invert());
$("unset").addEventListener("click", () => (unset(), $("source-file").focus()));
$("erase").addEventListener("click", (event) => {
  const button = event.currentTarget;
  button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
});
