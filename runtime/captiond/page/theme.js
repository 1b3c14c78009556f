// Runs before the first paint (a classic script in <head>), so that a remembered theme never flashes the other one.
"use strict";
(() => {
  const KEY = "captiond.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage is switched off: the system's theme it is
    }
  };
  const apply = () => {
    const chosen = remembered();
    const theme = chosen === "light" || chosen === "dark" ? chosen : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
  };
  dark.addEventListener("change", apply);
  apply();
})();
