// The page of one migration, host or batch: its buttons, which ask for confirmation and, of a host,
// for options; and the logs, which are read when they are opened.

import { follow } from "./live.js";
import { check, draw, list } from "./processes.js";

const dialog = document.getElementById("dialog");
const form = dialog.querySelector("form");
const answer = document.getElementById("answer");
const typed = dialog.querySelector("[name=typed]");
const yes = document.getElementById("dialog-yes");
const options = document.getElementById("dialog-options");
const findings = document.getElementById("dialog-findings");
let asking = null;  // the data of the button that was clicked

function cookie(name) {
  const pair = document.cookie.split("; ").find((cookie) => cookie.startsWith(`${name}=`));
  return pair?.slice(name.length + 1) ?? "";
}

function show(sentence, { wrong = false, see = "" } = {}) {
  answer.textContent = sentence;
  answer.classList.toggle("wrong", wrong);
  answer.hidden = false;
  if (see) {
    const link = document.createElement("a");
    link.href = see;
    link.textContent = "See how it goes";
    answer.append(" ", link);
  }
  answer.scrollIntoView({ block: "nearest" });
}

function ask(button) {
  asking = { ...button.dataset };
  form.reset();
  document.getElementById("dialog-title").textContent = asking.title;
  document.getElementById("dialog-text").textContent = asking.text;
  const label = document.getElementById("dialog-type");
  label.hidden = !asking.typed;
  label.querySelector("span").textContent = `Type ${asking.typed} to confirm:`;
  document.getElementById("dialog-force").hidden = !asking.gone;
  yes.textContent = asking.yes;
  yes.disabled = Boolean(asking.typed);
  if (options) offer();
  dialog.showModal();
}

// Show the options that belong to the button, and what preflight finds for them.
function offer() {
  options.hidden = !asking.options;
  findings.hidden = asking.options !== "migrate";
  for (const label of options.querySelectorAll("[data-for]")) {
    label.hidden = label.dataset.for !== asking.options;
  }
  if (asking.options !== "migrate") return;
  const chosen = document.getElementById("to");
  const to = options.querySelector("[name=to]");
  to.replaceChildren(...[...chosen.options].map(({ value }) => new Option(value, value)));
  to.value = chosen.value;
  examine();
}

// The options that were given, with the process; a check box that is not set gives nothing.
function given() {
  const fields = new URLSearchParams(asking.options ? new FormData(form) : []);
  if (asking.options !== "migrate") fields.delete("to");
  fields.set("typed", typed.value);
  fields.set("gone", asking.gone ?? "");
  if (form.elements.force.checked) fields.set("force", "yes");
  if (asking.pid) fields.set("pid", asking.pid);
  return fields;
}

async function examine() {
  const asked = given();
  findings.replaceChildren("Asking both hosts…");
  const found = await check(asked);
  // Another process or other options may have been chosen meanwhile.
  if (given().toString() === asked.toString()) draw(findings, found);
}

async function act({ action }, body) {
  show("Requested; waiting for the answer…");
  try {
    const headers = { "X-XSRFToken": cookie("_xsrf") };
    const response = await fetch(action, { method: "POST", body, headers });
    if (!response.headers.get("Content-Type")?.startsWith("application/json")) {
      const refusal = `The server refused it (${response.status}). Load the page again.`;
      return show(refusal, { wrong: true });
    }
    const { sentence, hint, see } = await response.json();
    return show([sentence, hint].filter(Boolean).join(" "), { wrong: !response.ok, see });
  } catch {
    return show("The server does not answer. Whether it was done is unknown.", { wrong: true });
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  if (button) ask(button);
});
typed.addEventListener("input", () => {
  yes.disabled = Boolean(asking.typed) && typed.value.trim() !== asking.typed;
});
options?.addEventListener("change", () => {
  if (asking.options === "migrate") examine();
});
dialog.addEventListener("keydown", (event) => {
  // Enter would press the first button of the form, which is to do nothing.
  if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
  event.preventDefault();
  if (!yes.disabled) yes.click();
});
dialog.addEventListener("close", () => {
  if (dialog.returnValue === "yes") act(asking, given());
  dialog.returnValue = "";  // Escape leaves it as it was
});

const logs = document.getElementById("logs");
logs?.addEventListener("toggle", async () => {
  if (!logs.open) return;
  const inside = logs.querySelector(".logs-body");
  inside.textContent = "Asking both hosts…";
  try {
    const response = await fetch(logs.dataset.from);
    if (response.ok) inside.innerHTML = await response.text();
    else inside.textContent = "The logs are not available now. Close and open this to try again.";
  } catch {
    inside.textContent = "The server does not answer. Close and open this to try again.";
  }
});

list();
follow({});
