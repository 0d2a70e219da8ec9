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
  // One stop of the Tab key a table; the arrow keys go from heading to heading.
  all("main table").forEach((table) => {
    const heads = all("thead tr:last-child th", table).filter((h) => h.textContent.trim());
    const body = table.tBodies[0];
    if (!body || body.rows.length < 3) return;
    const buttons = heads.map((head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.tabIndex = -1;
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const column = head.cellIndex;
        body.append(...[...body.rows].sort(
          (a, b) => (up ? 1 : -1) * compare(value(a, column), value(b, column))));
      });
      return button;
    });
    if (!buttons.length) return;
    buttons[0].tabIndex = 0;
    table.tHead.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const at = buttons.indexOf(document.activeElement);
      if (!step || at < 0) return;
      event.preventDefault();
      const next = buttons[(at + step + buttons.length) % buttons.length];
      buttons.forEach((button) => { button.tabIndex = button === next ? 0 : -1; });
      next.focus();
    });
  });

  // Figures come alive when they are first seen; until then, and on paper, the still picture.
  const enliven = async (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const live = figure.querySelector(".live");
    const narrow = figure.clientWidth < 520;
    if (spec.facet) {
      if (narrow) spec.columns = 1;
      spec.spec.width = figure.clientWidth / spec.columns - 20;
    } else {
      spec.width = "container";
    }
    const { legend } = spec.config;
    legend.columns = narrow ? 2 : 4;
    if (narrow) {
      spec.config.axisY = { labelLimit: 120, labelFontSize: 11, titleFontSize: 11.5 };
      spec.config.axisX = { labelOverlap: "greedy", labelFontSize: 11, titleFontSize: 11.5, titleAnchor: "end" };
    }
    figure.classList.add("is-live");
    try {
      const draw = () => vegaEmbed(live, spec, { ast: true, renderer: "svg", actions: false });
      const right = (part) => part?.getBoundingClientRect().right ?? 0;
      let drawn = await draw();
      const again = async () => { drawn.finalize(); drawn = await draw(); };
      while (legend.columns > 1 && right(live.querySelector(".role-legend")) > right(live) + 1) {
        legend.columns -= legend.columns > 2 ? 2 : 1;
        await again();
      }
      if (spec.facet) {  // panels know no container: they share what the axes leave of it
        const spare = live.clientWidth - live.querySelector("svg").width.baseVal.value;
        spec.spec.width = Math.max(spec.spec.width + Math.floor(spare / spec.columns), 80);
        await again();
      }
    } catch (error) {
      figure.classList.remove("is-live");
      console.error(error);
    }
  };
  if (typeof vegaEmbed === "function") {
    const near = new IntersectionObserver((entries) => {
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
        near.unobserve(entry.target);
        enliven(entry.target);
      });
    }, { rootMargin: "600px 0px" });
    all("figure.chart").forEach((figure) => near.observe(figure));
  }

  // What the mouse asks by hovering, the arrow keys ask one mark after the other.
  all("figure.chart").forEach((figure) => {
    const live = figure.querySelector(".live");
    const reading = figure.querySelector(".reading");
    let at = -1;
    live.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step || event.target !== live) return;
      event.preventDefault();
      const marks = all(".mark-symbol path[aria-label], .mark-rect path[aria-label]", live);
      if (!marks.length) return;
      at = (at + step + marks.length) % marks.length;
      all(".is-read", live).forEach((mark) => mark.classList.remove("is-read"));
      marks[at].classList.add("is-read");
      reading.textContent = marks[at].getAttribute("aria-label");
    });
    live.addEventListener("blur", () => {
      all(".is-read", live).forEach((mark) => mark.classList.remove("is-read"));
      reading.textContent = "";
    });
  });

  // Paper has no clicks: everything that is folded is printed, but the code.
  const folded = () => all("details:not([open]):not(.code)").filter((d) => !d.closest("nav"));
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = folded();
    opened.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));

  // A link to something folded opens it.
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target; part; part = part.parentElement) {
      if (part.tagName === "DETAILS") part.open = true;
    }
  };
  addEventListener("hashchange", reveal);
  reveal();

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
