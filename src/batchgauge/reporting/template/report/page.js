"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const store = (value) => {  // a page opened from a file may have no storage
    try {
      if (value) localStorage.setItem("batchgauge-theme", value);
      return localStorage.getItem("batchgauge-theme");
    } catch { return value; }
  };

  // Light and dark: the system decides until somebody clicks.
  const themeButton = document.querySelector("[data-toggle-theme]");
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const name = () => { themeButton.textContent = dark() ? "Light" : "Dark"; };
  const kept = store();
  if (kept) root.dataset.theme = kept;
  themeButton.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    store(root.dataset.theme);
    name();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  // All code, with one click.
  const codeButton = document.querySelector("[data-toggle-code]");
  codeButton?.addEventListener("click", () => {
    const open = codeButton.getAttribute("aria-pressed") !== "true";
    all("details.code").forEach((cell) => { cell.open = open; });
    codeButton.setAttribute("aria-pressed", String(open));
    codeButton.textContent = open ? "Hide code" : "Show code";
  });

  // Tables sort by a click on a heading; numbers by their full value.
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(text.replace(/,/g, ""));
    return text === "" || Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number")
    ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  all("main table").forEach((table) => {
    const heads = all("thead tr:last-child th", table);
    const body = table.tBodies[0];
    if (!body || body.rows.length < 2) return;
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        body.append(...[...body.rows].sort(
          (a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column))));
      });
    });
  });

  // A figure opens larger on a click, which a phone needs.
  all(".zoom").forEach((button) => button.addEventListener("click", () => {
    const dialog = document.createElement("dialog");
    dialog.className = "enlarged";
    dialog.setAttribute("aria-label", button.getAttribute("aria-label"));
    dialog.append(button.querySelector("img").cloneNode());
    dialog.firstChild.removeAttribute("width");
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }));

  // The contents fold on a narrow screen and follow the reading on a wide one.
  const contents = document.querySelector(".contents details");
  if (contents && matchMedia("(max-width: 67.99rem)").matches) contents.open = false;
  const links = new Map(all(".contents a").map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
  const seen = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    });
  }, { rootMargin: "-10% 0px -75% 0px" });
  all("main :is(h2, h3)[id]").forEach((heading) => seen.observe(heading));
})();
