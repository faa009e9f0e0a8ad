// The table of all migrations, one page of it at a time: lines are built once, then changed cell by
// cell. The address of the page has the search, the filters and the number of the page.

import { follow } from "./live.js";

const body = document.querySelector("#migrations tbody");
const filters = document.getElementById("filters");
const cards = [...document.querySelectorAll("[data-card]")];
const known = new Map();  // id: { row, line, cells }, of the lines of this page
let card = "";
let page = 1;

// How long to wait for the next letter of a search, in milliseconds.
const TYPING_MS = 250;

const FIELDS = ["state", "process", "route", "progress", "owner", "downtime", "asked", "batch"];
// The labels in a narrow window, where the table has no head.
const NAMES = { owner: "runs on", downtime: "downtime", asked: "requested", batch: "batch" };

function link(kind, name, text) {
  const anchor = document.createElement("a");
  anchor.href = `/migrations/${kind}/${encodeURIComponent(name)}`;
  anchor.textContent = text;
  return anchor;
}

function small(text) {
  const note = document.createElement("small");
  note.textContent = text;
  note.title = text;
  return note;
}

function badge(row) {
  const state = document.createElement("span");
  state.className = `state state-${row.look}`;
  state.textContent = row.state;
  return [state];
}

// The program, if the source has looked at the process already, and its PID.
function process(row) {
  const pid = `pid ${row.pid}`;
  const anchor = link("migration", row.id, row.program || pid);
  anchor.title = row.command || pid;
  return row.program ? [anchor, small(pid)] : [anchor];
}

function progress(row) {
  const note = small(row.why || row.window || (row.rate ? `${row.step}, ${row.rate}` : row.step));
  if (row.percent === null || row.percent === 100) return [note];
  const bar = document.createElement("progress");
  bar.max = 100;
  bar.value = row.percent;
  bar.setAttribute("aria-label", `${row.percent} percent`);
  return [bar, note];
}

// What stands in each cell.
const DRAW = {
  state: badge,
  process,
  route: (row) => [
    link("host", row.source, row.source),
    " → ",
    link("host", row.destination, row.destination),
  ],
  progress,
  owner: (row) => [row.owner ?? "?"],
  downtime: (row) => [row.downtime],
  asked: (row) => [row.asked],
  batch: (row) => (row.batch ? [link("batch", row.batch, row.batch.slice(0, 8))] : []),
};

// The fields of a row that each cell depends on.
const USES = {
  state: ["state", "look"],
  process: ["pid", "command"],
  route: ["source", "destination"],
  progress: ["why", "window", "rate", "step", "percent"],
  owner: ["owner"],
  downtime: ["downtime"],
  asked: ["asked"],
  batch: ["batch"],
};

function build(row) {
  const line = document.createElement("tr");
  line.dataset.id = row.id;
  const cells = {};
  for (const field of FIELDS) {
    const cell = line.insertCell();
    cell.className = `cell-${field}`;
    if (NAMES[field]) cell.dataset.name = NAMES[field];
    cell.append(...DRAW[field](row));
    cells[field] = cell;
  }
  return { row, line, cells };
}

function patch(entry, row) {
  for (const field of FIELDS) {
    if (USES[field].some((name) => entry.row[name] !== row[name])) {
      entry.cells[field].replaceChildren(...DRAW[field](row));
    }
  }
  entry.row = row;
}

// Show these rows in this order, and touch only the lines that change.
function list(rows) {
  const ids = new Set(rows.map((row) => row.id));
  for (const [id, entry] of known) {
    if (ids.has(id)) continue;
    entry.line.remove();
    known.delete(id);
  }
  rows.forEach((row, place) => {
    const entry = known.get(row.id);
    if (entry) patch(entry, row);
    else known.set(row.id, build(row));
    const { line } = known.get(row.id);
    if (body.children[place] !== line) body.insertBefore(line, body.children[place] ?? null);
  });
}

// Offer the values of the rows in a filter; one that was offered once stays.
function offer(select, values) {
  const there = new Set([...select.options].map((option) => option.value));
  for (const value of values) {
    if (!value || there.has(value)) continue;
    select.add(new Option(select.name === "batch" ? value.slice(0, 8) : value, value));
  }
}

function count(view) {
  for (const each of document.querySelectorAll("[data-count]")) {
    const name = each.dataset.count;
    each.textContent = name ? view.counts[name] : view.counted;
  }
}

function show(view) {
  page = view.page;
  list(view.rows);
  count(view);
  for (const [name, values] of Object.entries(view.offers)) offer(filters.elements[name], values);
  const last = view.first + view.rows.length;
  const text = `${view.first + 1} to ${last} of ${view.shown}`;
  document.getElementById("shown").textContent = text;
  document.getElementById("newer").disabled = view.page === 1;
  document.getElementById("older").disabled = view.page === view.pages;
  document.getElementById("paging").hidden = view.shown === 0;
  document.getElementById("empty").hidden = view.known > 0;
  document.getElementById("nothing").hidden = view.known === 0 || view.shown > 0;
}

function some(rows) {
  for (const row of rows) {
    const entry = known.get(row.id);
    if (entry) patch(entry, row);
  }
}

// What the form, the cards and the paging ask for, as the end of an address.
function query() {
  const asked = new URLSearchParams();
  const between = filters.elements.range.value === "between";
  for (const { name, value } of filters.elements) {
    const bounds = name === "since" || name === "until";
    if (value && (!bounds || between)) asked.set(name, value);
  }
  if (card) asked.set("card", card);
  if (page > 1) asked.set("page", page);
  const text = asked.toString();
  return text && `?${text}`;
}

// Set the form, the cards and the paging to what the address asks for.
function read() {
  const asked = new URLSearchParams(location.search);
  for (const field of filters.elements) {
    const value = asked.get(field.name) ?? "";
    if (field.options) offer(field, [value]);
    field.value = value;
  }
  card = asked.get("card") ?? "";
  page = Number(asked.get("page")) || 1;
  mark();
}

function mark() {
  for (const each of cards) each.setAttribute("aria-pressed", String(each.dataset.card === card));
  document.getElementById("between").hidden = filters.elements.range.value !== "between";
}

read();
const again = follow({ page: show, some }, query);

// Ask for something else; ``step`` if the browser's way back shall lead here.
function ask({ step = false } = {}) {
  mark();
  const address = location.pathname + query();
  if (step) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  again();
}

function turn(by) {
  page += by;
  ask({ step: true });
  window.scrollTo(0, 0);
}

let typing = null;
filters.addEventListener("input", (event) => {
  page = 1;
  clearTimeout(typing);
  typing = setTimeout(ask, event.target.name === "text" ? TYPING_MS : 0);
});
filters.addEventListener("submit", (event) => event.preventDefault());
for (const each of cards) {
  each.addEventListener("click", () => {
    card = each.dataset.card === card ? "" : each.dataset.card;
    page = 1;
    ask({ step: true });
  });
}
document.getElementById("newer").addEventListener("click", () => turn(-1));
document.getElementById("older").addEventListener("click", () => turn(1));
window.addEventListener("popstate", () => {
  read();
  again();
});
