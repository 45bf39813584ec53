// Wires the page: the first load, buttons and keys, the theme.

import { cancel, generate, say } from "./draw.js";
import { useControls } from "./extras.js";
import { $, put, reset, restore, snapshot, usePayload } from "./fields.js";
import { fill } from "./files.js";
import { current, whenShown } from "./gallery.js";
import { load } from "./lists.js";
import { useAxis } from "./sheet.js";
import { startFrom, useSource } from "./source.js";

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
$("start").addEventListener("click", () =>
  startFrom(current().blob).then(() => $("source").scrollIntoView({ block: "nearest" })),
);
$("copy").hidden = !navigator.clipboard; // it is there on https and localhost alone
$("copy").addEventListener("click", () =>
  navigator.clipboard.writeText($("text").textContent).then(() => say("Copied")),
);
whenShown(({ seed }, other) => {
  if (other) say(""); // what it says is about other pictures
  if (seed == null) $("reuse").setAttribute("aria-disabled", "true");
  else $("reuse").removeAttribute("aria-disabled");
});

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
$("hr-scale").addEventListener(
  "input",
  () => $("hires-on").checked && ($("hires-note").textContent = `${$("hr-scale").value} ×`),
);

/* Dark or light */

const isDark = () =>
  (document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
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
