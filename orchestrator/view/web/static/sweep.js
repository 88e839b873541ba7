// The grid of a sweep: scenarios × arms, as a table of which only the visible rows exist, or as a waffle.
//
// Data comes from the page (#grid-data) and changes by `grid` events. The address keeps search, filter, sort and view.

import { remember } from "./page.js";

const ROW = 28;
const AHEAD = 12; // rows that are drawn beyond the window
const SQUARE = 11; // of the waffle, its gap included

const gridBox = document.getElementById("grid");
const inputs = Object.fromEntries(["search", "show", "sort", "view"].map((id) => [id, document.getElementById(id)]));
const hasButton = document.getElementById("has");
const NAMES = { search: "q", show: "show", sort: "sort", view: "view" };
const query = new URLSearchParams(location.search);
const chosen = { has: query.get("has") ?? "" };
for (const [id, name] of Object.entries(NAMES)) inputs[id].value = query.get(name) ?? "";

let data = JSON.parse(document.getElementById("grid-data").textContent);
let order = []; // the rows that are shown, as indices into data.rows
let drawn = new Map(); // their elements by index
let at = { row: -1, arm: 0 };
const linkOf = document.body.dataset.links ?? "trial?";

const cellsOf = (row) => data.cells.slice(row * width(), (row + 1) * width());
const width = () => data.arms.length * data.trials;
const kindOf = (cell) => data.kinds[cell[0]];
const isFlagged = (cell) => cell[3].length > (kindOf(cell) === "failed" ? 1 : 0);

const SHOWN = {
  "": () => true,
  unsolved: (row) => cellsOf(row).some((cell) => ["unsolved", "partial", "failed"].includes(kindOf(cell))),
  failed: (row) => cellsOf(row).some((cell) => kindOf(cell) === "failed"),
  flagged: (row) => cellsOf(row).some(isFlagged),
  running: (row) => cellsOf(row).some((cell) => kindOf(cell) === "running"),
  differing: (row) => data.rows[row][3].includes("d"),
  flaky: (row) => data.rows[row][3].includes("f"),
};
const SORTED = {
  "": (a, b) => a - b,
  name: (a, b) => data.names[a].localeCompare(data.names[b]) || a - b,
  worst: (a, b) => data.rows[a][2] - data.rows[b][2] || a - b,
  best: (a, b) => data.rows[b][2] - data.rows[a][2] || a - b,
};

/** Choose and sort the rows anew; returns whether they are others than before. */
function sortRows() {
  const before = order.join();
  const wanted = inputs.search.value.toLowerCase();
  const isShown = SHOWN[inputs.show.value] ?? SHOWN[""];
  order = data.rows
    .map((_, row) => row)
    .filter((row) => data.names[row].toLowerCase().includes(wanted) && isShown(row))
    .filter((row) => !chosen.has || cellsOf(row).some((cell) => cell[3].includes(chosen.has)))
    .sort(SORTED[inputs.sort.value] ?? SORTED[""]);
  return order.join() !== before;
}

function draw() {
  document.getElementById("shown").textContent =
    order.length === data.rows.length ? `${order.length} scenarios` : `${order.length} of ${data.rows.length} scenarios`;
  hasButton.hidden = !chosen.has;
  hasButton.textContent = `${chosen.has} ✕`;
  inputs.view.value === "waffle" ? drawWaffle() : drawTable();
}

function element(name, classes, text) {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== undefined) made.textContent = text;
  return made;
}

function addressOf(row, arm, trial) {
  const words = new URLSearchParams({ scenario: data.ids[row], arm: data.arms[arm].id, n: trial + 1 });
  return `${linkOf}${words}`;
}

function drawTable() {
  const table = element("div", "grid");
  table.setAttribute("role", "table");
  table.setAttribute("aria-label", "Scores by scenario and arm");
  table.setAttribute("aria-rowcount", order.length + 1);
  table.style.setProperty("--arms", data.arms.length);
  const names = element("div", "names");
  names.setAttribute("role", "row");
  const titles = [["scenario", ""], ["solved", "solved-of"], ...data.arms.map((arm) => [arm.name, ""])];
  for (const [text, classes] of titles) {
    const title = element("span", classes, text);
    title.title = text;
    title.setAttribute("role", "columnheader");
    names.append(title);
  }
  const rows = element("div", "rows");
  rows.setAttribute("role", "rowgroup");
  rows.style.height = `${order.length * ROW}px`;
  table.append(names, rows);
  gridBox.replaceChildren(table);
  drawn = new Map();
  drawRows();
}

/** Make the rows in the window, or all for a printer, and remove those that left it. */
function drawRows(isPrinted = false) {
  const rows = gridBox.querySelector(".rows");
  if (!rows) return;
  const top = rows.getBoundingClientRect().top;
  const first = isPrinted ? 0 : Math.max(0, Math.floor(-top / ROW) - AHEAD);
  const last = isPrinted ? order.length : Math.min(order.length, Math.ceil((innerHeight - top) / ROW) + AHEAD);
  for (const [index, row] of drawn) {
    if (index < first || index >= last) {
      row.remove();
      drawn.delete(index);
    }
  }
  for (let index = first; index < last; index++) {
    if (drawn.has(index)) continue;
    const row = makeRow(order[index], index);
    drawn.set(index, row);
    rows.append(row);
  }
}

function makeRow(row, index) {
  const made = element("div", index === at.row ? "row chosen" : "row");
  made.setAttribute("role", "row");
  made.setAttribute("aria-rowindex", index + 2);
  made.style.transform = `translateY(${index * ROW}px)`;
  const name = element("span", "", data.names[row]);
  name.title = data.names[row];
  name.setAttribute("role", "rowheader");
  const solved = element("span", "solved-of quiet", data.rows[row][0]);
  solved.setAttribute("role", "cell");
  solved.title = `solved of scored; mean ${data.rows[row][1]}`;
  made.append(name, solved);
  data.arms.forEach((arm, number) => {
    const cells = element("span", "cells");
    cells.setAttribute("role", "cell");
    for (let trial = 0; trial < data.trials; trial++) cells.append(makeCell(row, number, trial, index));
    made.append(cells);
  });
  return made;
}

function makeCell(row, arm, trial, index) {
  const cell = data.cells[row * width() + arm * data.trials + trial];
  const made = element("a", `cell ${kindOf(cell)}`, data.trials > 4 ? "" : cell[1]);
  if (isFlagged(cell)) made.classList.add("flagged");
  if (index === at.row && arm === at.arm && trial === 0) made.classList.add("at");
  made.href = addressOf(row, arm, trial);
  const which = data.trials > 1 ? ` #${trial + 1}` : "";
  made.title = `${data.names[row]}, ${data.arms[arm].name}${which}: ${cell[1] || "waiting"}${cell[2] ? `, ${cell[2]}` : ""}`;
  made.setAttribute("aria-label", made.title);
  return made;
}

/** Draw a square for each trial, arm by arm. */
function drawWaffle() {
  const style = getComputedStyle(document.documentElement);
  const box = element("div", "grid waffle");
  gridBox.replaceChildren(box);
  data.arms.forEach((arm, number) => {
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Outcomes of ${arm.name}, a square for each trial`);
    const frame = element("div");
    frame.append(canvas);
    box.append(element("h3", "", arm.name), frame);
    const columns = Math.max(1, Math.floor(canvas.clientWidth / SQUARE));
    const count = order.length * data.trials;
    const scale = devicePixelRatio;
    canvas.style.height = `${Math.ceil(count / columns) * SQUARE}px`;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const trialAt = (index) => [order[Math.floor(index / data.trials)], index % data.trials];
    for (let index = 0; index < count; index++) {
      const [row, trial] = trialAt(index);
      const cell = data.cells[row * width() + number * data.trials + trial];
      const [x, y] = [(index % columns) * SQUARE, Math.floor(index / columns) * SQUARE];
      pen.fillStyle = style.getPropertyValue(`--${kindOf(cell)}`);
      pen.fillRect(x, y, SQUARE - 2, SQUARE - 2);
      if (isFlagged(cell)) {
        pen.fillStyle = style.getPropertyValue("--flag");
        pen.fillRect(x, y + SQUARE - 4, SQUARE - 2, 2);
      }
    }
    const under = (event) => {
      const index = Math.floor(event.offsetY / SQUARE) * columns + Math.floor(event.offsetX / SQUARE);
      return index < count && event.offsetX < columns * SQUARE ? trialAt(index) : null;
    };
    canvas.addEventListener("mousemove", (event) => {
      const found = under(event);
      canvas.title = found ? makeCell(found[0], number, found[1], -1).title : "";
    });
    canvas.addEventListener("click", (event) => {
      const found = under(event);
      if (found) location.href = addressOf(found[0], number, found[1]);
    });
  });
}

function choose(row, arm) {
  const before = at.row;
  at = { row: Math.min(order.length - 1, Math.max(0, row)), arm: Math.min(data.arms.length - 1, Math.max(0, arm)) };
  for (const index of [before, at.row]) {
    drawn.get(index)?.remove();
    drawn.delete(index);
  }
  const top = gridBox.querySelector(".rows").getBoundingClientRect().top + at.row * ROW;
  if (top < 60 || top > innerHeight - 2 * ROW) scrollBy(0, top - innerHeight / 2);
  drawRows();
}

function changed() {
  at = { row: -1, arm: at.arm };
  const shown = Object.entries(NAMES).map(([id, name]) => [name, inputs[id].value]);
  remember({ ...Object.fromEntries(shown), has: chosen.has });
  sortRows();
  draw();
}

for (const input of Object.values(inputs)) input.addEventListener("input", changed);
document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
hasButton.addEventListener("click", () => {
  chosen.has = "";
  changed();
});
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("[data-has]");
  if (!link) return;
  event.preventDefault();
  chosen.has = link.dataset.has;
  changed();
  document.getElementById("trials").scrollIntoView();
});
document.addEventListener("act", (event) => {
  if (inputs.view.value === "waffle" || !order.length) return;
  event.preventDefault();
  const moves = { next: [1, 0], previous: [-1, 0], left: [0, -1], right: [0, 1] };
  if (event.detail === "open") {
    if (at.row >= 0) location.href = addressOf(order[at.row], at.arm, 0);
    return;
  }
  const [down, right] = moves[event.detail];
  choose(at.row + down, at.arm + right);
});
document.addEventListener("grid", (event) => {
  const news = event.detail;
  const rows = new Set();
  if (news.cells) {
    data = news;
  } else {
    for (const [index, row] of Object.entries(news.changed_rows)) rows.add(Number(index)) && (data.rows[index] = row);
    for (const [index, cell] of Object.entries(news.changed_cells)) {
      data.cells[index] = cell;
      rows.add(Math.floor(index / width()));
    }
  }
  if (sortRows() || news.cells || inputs.view.value === "waffle") draw();
  else redraw(rows);
});

/** Draw some rows of the table again, and give back the focus that was in them. */
function redraw(rows) {
  const focused = document.activeElement?.getAttribute("href");
  for (const [index, row] of drawn) {
    if (!rows.has(order[index])) continue;
    row.remove();
    drawn.delete(index);
  }
  drawRows();
  if (focused && document.activeElement === document.body) {
    gridBox.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
}

let waiting = false;
function later() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawRows();
  });
}
addEventListener("scroll", later, { passive: true });
addEventListener("beforeprint", () => drawRows(true));
addEventListener("afterprint", () => drawRows());
addEventListener("resize", () => (inputs.view.value === "waffle" ? drawWaffle() : drawRows()));
sortRows();
draw();
