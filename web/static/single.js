// The page of one migration, host or batch: its buttons, which ask for confirmation, and the logs,
// which are read when they are opened.

import { follow } from "./live.js";

const dialog = document.getElementById("dialog");
const answer = document.getElementById("answer");
const typed = dialog.querySelector("[name=typed]");
const yes = document.getElementById("dialog-yes");
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
}

function ask(button) {
  asking = { ...button.dataset };
  document.getElementById("dialog-title").textContent = asking.title;
  document.getElementById("dialog-text").textContent = asking.text;
  const label = document.getElementById("dialog-type");
  label.hidden = !asking.typed;
  label.querySelector("span").textContent = `Type ${asking.typed} to confirm:`;
  typed.value = "";
  yes.textContent = asking.yes;
  yes.disabled = Boolean(asking.typed);
  dialog.showModal();
}

async function act({ action, gone }) {
  show("Requested; waiting for the answer…");
  const body = new URLSearchParams({ typed: typed.value, gone: gone ?? "" });
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
typed.addEventListener("keydown", (event) => {
  // Enter would press the first button of the form, which is to do nothing.
  if (event.key !== "Enter") return;
  event.preventDefault();
  if (!yes.disabled) yes.click();
});
dialog.addEventListener("close", () => {
  if (dialog.returnValue === "yes") act(asking);
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

follow({});
