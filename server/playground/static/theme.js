// Light or dark: the system's choice until the button is used.

const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const stored = localStorage.getItem("theme");
if (stored) root.dataset.theme = stored;

const current = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");

export function themeButton(button) {
  button.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
  });
}
