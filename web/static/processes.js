// The processes of a host, and what preflight finds out about each: one after another, so that
// a page asks a host for one check at a time.

const section = document.getElementById("processes");

// How many processes are checked without being asked for.
const CHECKED = 50;

// Ask preflight about one process: ``pid``, ``to`` and options; return its findings, or why there
// are none.
export async function check(asked) {
  const away = { sentence: "The server does not answer." };
  try {
    const response = await fetch(`${section.dataset.check}?${asked}`);
    const isJson = response.headers.get("Content-Type")?.startsWith("application/json");
    return isJson ? await response.json() : away;
  } catch {
    return away;
  }
}

function badge(found) {
  const state = document.createElement("span");
  state.className = `state state-${found.look ?? "waits"}`;
  state.textContent = found.verdict ?? "not checked";
  return state;
}

function line(finding) {
  const item = document.createElement("li");
  const code = document.createElement("code");
  code.textContent = finding.code;
  item.append(code, ` on ${finding.host}: ${finding.sentence} `);
  const hint = document.createElement("small");
  hint.textContent = finding.hint;
  item.append(hint);
  return item;
}

// Show a verdict and all that led to it.
export function draw(place, found) {
  const reasons = document.createElement("ul");
  reasons.append(...(found.findings ?? []).map(line));
  place.replaceChildren(badge(found), found.sentence ?? "", reasons);
}

// Show a verdict and the first reason.
function sum(cell, found) {
  const first = found.findings?.find(({ verdict }) => verdict !== "note");
  const why = document.createElement("small");
  why.textContent = first ? `${first.code}: ${first.sentence}` : found.sentence ?? "";
  why.title = first?.hint ?? "";
  cell.replaceChildren(badge(found), " ", why);
}

let round = 0;  // which choice of a destination the checks are for

async function checkAll() {
  const ours = round += 1;
  const to = document.getElementById("to").value;
  const rows = [...section.querySelectorAll("tr[data-asks]")].slice(0, CHECKED);
  for (const row of rows) row.querySelector(".verdict").textContent = to ? "…" : "";
  for (const row of to ? rows : []) {
    const found = await check(new URLSearchParams({ pid: row.dataset.pid, to }));
    if (ours !== round) return;
    sum(row.querySelector(".verdict"), found);
  }
}

async function load() {
  const inside = section.querySelector(".processes-body");
  try {
    const response = await fetch(section.dataset.from);
    const text = await response.text();
    if (response.ok) inside.innerHTML = text;
    else inside.textContent = text;
    if (!response.ok) return;
    document.getElementById("to").addEventListener("change", checkAll);
    await checkAll();
  } catch {
    inside.textContent = "The server does not answer. Close and open this to try again.";
  }
}

// List the processes of the host's page; other pages have none.
export function list() {
  if (!section) return;
  section.addEventListener("toggle", () => {
    if (section.open) load();
  });
  if (section.open) load();
}
