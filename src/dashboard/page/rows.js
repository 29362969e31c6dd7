// A list of any length of which only what can be seen is in the page.
//
// Rows have one height, so where each one lies is known. It is a grid for screen readers, which are told how many rows there are
// and which one this is; one row is in the tab order, and the arrow keys move it.

import { make } from "./words.js";

const BEYOND = 8;

export class Rows {
  // `columns`: [{name, title}]; `fill(cells, item)` writes an item into a row's cells; `open(item)` when one is chosen.
  constructor(place, { label, columns, fill, open, key }) {
    Object.assign(this, { columns, fill, open, key, items: [], chosen: null, at: 0, pool: [], shown: new Map() });
    this.head = make("div", { role: "row", class: "row head", "aria-rowindex": "1" },
      ...columns.map(({ name, title }) => make("span", { role: "columnheader", class: `cell ${name}`, text: title })));
    this.inner = make("div", { role: "rowgroup", class: "inner" });
    this.view = make("div", { role: "presentation", class: "scroll" }, this.inner);
    this.empty = make("p", { class: "empty quiet", hidden: true });
    this.grid = make("div", { role: "grid", class: "grid", "aria-label": label, "aria-colcount": columns.length },
      make("div", { role: "rowgroup" }, this.head), this.view);
    place.append(this.grid, this.empty);
    this.view.addEventListener("scroll", () => this.later(), { passive: true });
    this.grid.addEventListener("keydown", (event) => this.pressed(event));
    this.inner.addEventListener("click", (event) => {
      const row = event.target.closest("[role=row]");
      if (row) this.choose(Number(row.dataset.at));
    });
    new ResizeObserver(() => this.measure()).observe(this.view);
  }

  measure() {
    const said = getComputedStyle(this.grid).getPropertyValue("--row");
    this.height = Number.parseFloat(said) || 40;
    this.draw();
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  // The items in their order. The row that had the focus keeps it, wherever it is now.
  show(items, words) {
    const held = this.items[this.at];
    this.items = items;
    if (held) {
      const now = items.findIndex((item) => this.key(item) === this.key(held));
      this.at = now >= 0 ? now : Math.min(this.at, Math.max(0, items.length - 1));
    }
    this.grid.setAttribute("aria-rowcount", String(items.length + 1));
    this.grid.hidden = items.length === 0;
    this.empty.hidden = items.length !== 0;
    this.empty.textContent = words;
    this.later();
  }

  choose(at) {
    const item = this.items[at];
    if (!item) return;
    this.at = at;
    this.open(item);
    this.draw();
  }

  mark(key) {
    this.chosen = key;
    const at = this.items.findIndex((item) => this.key(item) === key);
    if (at >= 0) this.at = at;
    this.later();
  }

  draw() {
    if (!this.height) return;
    const { scrollTop, clientHeight } = this.view;
    const first = Math.max(0, Math.floor(scrollTop / this.height) - BEYOND);
    const end = Math.min(this.items.length, Math.ceil((scrollTop + clientHeight) / this.height) + BEYOND);
    this.inner.style.height = `${this.items.length * this.height}px`;
    const focused = this.inner.contains(document.activeElement) ? document.activeElement : null;
    for (const [at, row] of this.shown) {
      if (at >= first && at < end) continue;
      // The one with the focus stays, so that the keyboard is not lost while the list is scrolled by other means.
      if (row === focused) continue;
      row.remove();
      this.pool.push(row);
      this.shown.delete(at);
    }
    for (let at = first; at < end; at += 1) this.place(at);
    for (const [at, row] of this.shown) {
      if (at >= this.items.length) { row.remove(); this.shown.delete(at); }
      else row.tabIndex = at === this.at ? 0 : -1;
    }
    // Somewhere the Tab key has to lead.
    if (!this.shown.has(this.at)) {
      const any = this.shown.get(Math.max(first, Math.min(this.at, end - 1)));
      if (any) any.tabIndex = 0;
    }
  }

  place(at) {
    const item = this.items[at];
    let row = this.shown.get(at);
    if (!row) {
      row = this.pool.pop() ?? make("div", { role: "row", class: "row" },
        ...this.columns.map(({ name }) => make("span", { role: "gridcell", class: `cell ${name}` })));
      row.stamp = null;
      this.shown.set(at, row);
      this.inner.append(row);
    }
    row.dataset.at = String(at);
    row.setAttribute("aria-rowindex", String(at + 2));
    row.style.transform = `translateY(${at * this.height}px)`;
    const chosen = this.key(item) === this.chosen;
    row.classList.toggle("chosen", chosen);
    row.setAttribute("aria-selected", String(chosen));
    this.fill(row, item);
  }

  pressed(event) {
    const page = Math.max(1, Math.floor(this.view.clientHeight / this.height) - 1);
    const to = {
      ArrowDown: this.at + 1, ArrowUp: this.at - 1, PageDown: this.at + page, PageUp: this.at - page,
      Home: 0, End: this.items.length - 1,
    }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      if (!event.target.closest("[role=row]")) return;
      event.preventDefault();
      this.choose(Number(event.target.dataset.at ?? this.at));
      return;
    }
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.at = Math.max(0, Math.min(to, this.items.length - 1));
    this.reveal();
  }

  // Brings the row that is in the tab order into view, and to it the focus.
  reveal() {
    const top = this.at * this.height;
    const { scrollTop, clientHeight } = this.view;
    if (top < scrollTop) this.view.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.view.scrollTop = top + this.height - clientHeight;
    this.draw();
    this.shown.get(this.at)?.focus({ preventScroll: true });
  }
}
