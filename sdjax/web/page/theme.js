// Runs before the first paint, so that a chosen theme does not flash. Without a choice the system's theme holds.
try {
  const theme = localStorage.getItem("sdjax.theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // storage is switched off: the system's theme
}
