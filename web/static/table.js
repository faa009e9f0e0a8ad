// The table of all migrations: built once, then changed cell by cell.

import { follow } from "./live.js";

const body = document.querySelector("#migrations tbody");
const filters = document.getElementById("filters");
const known = new Map();  // id: { row, line, cells, text }

const FIELDS = ["state", "process", "route", "progress", "owner", "downtime", "asked", "batch"];
// The labels in a narrow window, where the table has no head.
const NAMES = { owner: "runs on", downtime: "downtime", asked: "requested", batch: "batch" };

// One formatter for all rows: making one takes longer than the rest of a row.
const CLOCK = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });

function link(kind, name, text) {
  const anchor = document.createElement("a");
  anchor.href = `/migrations/${kind}/${encodeURIComponent(name)}`;
  anchor.textContent = text;
  return anchor;
}

function badge(row) {
  const state = document.createElement("span");
  state.className = `state state-${row.look}`;
  state.textContent = row.state;
  return [state];
}

function progress(row) {
  const note = document.createElement("small");
  note.textContent = row.why || row.window || (row.rate ? `${row.step}, ${row.rate}` : row.step);
  note.title = note.textContent;
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
  process: (row) => [link("migration", row.id, `pid ${row.pid}`)],
  route: (row) => [
    link("host", row.source, row.source),
    " → ",
    link("host", row.destination, row.destination),
  ],
  progress,
  owner: (row) => [row.owner ?? "?"],
  downtime: (row) => [row.downtime],
  asked: (row) => [CLOCK.format(row.created * 1000)],
  batch: (row) => (row.batch ? [link("batch", row.batch, row.batch.slice(0, 8))] : []),
};

// The fields of a row that each cell depends on.
const USES = {
  state: ["state", "look"],
  process: ["pid"],
  route: ["source", "destination"],
  progress: ["why", "window", "rate", "step", "percent"],
  owner: ["owner"],
  downtime: ["downtime"],
  asked: ["created"],
  batch: ["batch"],
};

// What the search looks in.
function text(row) {
  const { id, pid, source, destination, state, owner, batch, why, step } = row;
  return [id, `pid ${pid}`, source, destination, state, owner, batch, why, step]
    .join(" ").toLowerCase();
}

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
  return { row, line, cells, text: text(row) };
}

function patch(entry, row) {
  for (const field of FIELDS) {
    if (USES[field].some((name) => entry.row[name] !== row[name])) {
      entry.cells[field].replaceChildren(...DRAW[field](row));
    }
  }
  entry.row = row;
  entry.text = text(row);
}

// Put a new line in its place: those that were requested last come first.
function place(entry) {
  const isNewer = (line) => known.get(line.dataset.id).row.created > entry.row.created;
  let before = body.firstElementChild;
  while (before && isNewer(before)) before = before.nextElementSibling;
  body.insertBefore(entry.line, before);
}

function fits(entry, wanted) {
  const { row } = entry;
  return (!wanted.text || wanted.text.split(/\s+/).every((term) => entry.text.includes(term)))
    && (!wanted.state || row.state === wanted.state)
    && (!wanted.host || row.source === wanted.host || row.destination === wanted.host)
    && (!wanted.batch || row.batch === wanted.batch);
}

function wanted() {
  const { text: search, state, host, batch } = filters.elements;
  return {
    text: search.value.trim().toLowerCase(),
    state: state.value,
    host: host.value,
    batch: batch.value,
  };
}

// Offer the values of the rows in a filter; one that was offered once stays.
function choose(select, values) {
  const there = new Set([...select.options].map((option) => option.value));
  for (const value of [...values].sort()) {
    if (!value || there.has(value)) continue;
    select.add(new Option(select.name === "batch" ? value.slice(0, 8) : value, value));
  }
}

function sift() {
  const asked = wanted();
  const counts = { waits: 0, runs: 0, good: 0, bad: 0 };
  let shown = 0;
  for (const entry of known.values()) {
    const show = fits(entry, asked);
    if (entry.line.hidden === show) entry.line.hidden = !show;
    shown += show;
    // A rollback is under way still; what else turned has ended.
    const { look, state } = entry.row;
    counts[look === "turns" && state === "rolling back" ? "runs" : look] += 1;
  }
  for (const card of document.querySelectorAll("[data-count]")) {
    card.textContent = counts[card.dataset.count];
  }
  const total = known.size;
  const count = shown === total ? `${shown}` : `${shown} of ${total}`;
  document.getElementById("shown").textContent = count;
  document.getElementById("empty").hidden = known.size > 0;
}

function offer(rows) {
  choose(filters.elements.state, new Set(rows.map((row) => row.state)));
  choose(filters.elements.host, new Set(rows.flatMap((row) => [row.source, row.destination])));
  choose(filters.elements.batch, new Set(rows.map((row) => row.batch)));
}

function some(rows) {
  for (const row of rows) {
    const entry = known.get(row.id);
    if (entry) {
      patch(entry, row);
    } else {
      known.set(row.id, build(row));
      place(known.get(row.id));
    }
  }
  offer(rows);
  sift();
}

function all(rows) {
  const ids = new Set(rows.map((row) => row.id));
  for (const [id, entry] of known) {
    if (!ids.has(id)) {
      entry.line.remove();
      known.delete(id);
    }
  }
  if (known.size) return some(rows);
  const lines = document.createDocumentFragment();
  for (const row of rows.toSorted((one, other) => other.created - one.created)) {
    known.set(row.id, build(row));
    lines.append(known.get(row.id).line);
  }
  body.append(lines);
  offer(rows);
  return sift();
}

filters.addEventListener("input", sift);
filters.addEventListener("submit", (event) => event.preventDefault());
follow({ all, some });
