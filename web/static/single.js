// The page of one migration, host or batch: its buttons, each behind a question, and the logs when they are asked for.

import { follow } from "./live.js";

const dialog = document.getElementById("dialog");
const said = document.getElementById("said");
const typed = dialog.querySelector("[name=typed]");
const yes = document.getElementById("dialog-yes");
let asking = null;

function cookie(name) {
  return document.cookie.split("; ").find((each) => each.startsWith(`${name}=`))?.slice(name.length + 1) ?? "";
}

function tell(sentence, { wrong = false, see = "" } = {}) {
  said.textContent = sentence;
  said.classList.toggle("wrong", wrong);
  said.hidden = false;
  if (see) {
    const link = document.createElement("a");
    link.href = see;
    link.textContent = "See how it goes";
    said.append(" ", link);
  }
}

function ask(button) {
  asking = { ...button.dataset };
  document.getElementById("dialog-title").textContent = asking.title;
  document.getElementById("dialog-text").textContent = asking.text;
  const label = document.getElementById("dialog-type");
  label.hidden = !asking.typed;
  label.querySelector("span").textContent = `Type ${asking.typed} to agree:`;
  typed.value = "";
  yes.textContent = asking.yes;
  yes.disabled = Boolean(asking.typed);
  dialog.showModal();
}

async function act({ act: address, gone }) {
  tell("It was asked for; waiting for what comes of it…");
  const body = new URLSearchParams({ typed: typed.value, gone: gone ?? "" });
  try {
    const answer = await fetch(address, { method: "POST", body, headers: { "X-XSRFToken": cookie("_xsrf") } });
    const json = answer.headers.get("Content-Type")?.startsWith("application/json");
    if (!json) return tell(`The server refused it (${answer.status}). Load the page again.`, { wrong: true });
    const { said: sentence, hint, see } = await answer.json();
    return tell([sentence, hint].filter(Boolean).join(" "), { wrong: !answer.ok, see });
  } catch {
    return tell("The server does not answer. Whether it was done is not known.", { wrong: true });
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (button) ask(button);
});
typed.addEventListener("input", () => { yes.disabled = Boolean(asking.typed) && typed.value.trim() !== asking.typed; });
typed.addEventListener("keydown", (event) => {
  // Enter would press the first button of the form, which is to do nothing.
  if (event.key !== "Enter") return;
  event.preventDefault();
  if (!yes.disabled) yes.click();
});
dialog.addEventListener("close", () => { if (dialog.returnValue === "yes") act(asking); dialog.returnValue = ""; });

const logs = document.getElementById("logs");
logs?.addEventListener("toggle", async () => {
  if (!logs.open) return;
  const inside = logs.querySelector(".logs-body");
  inside.textContent = "Asking both hosts…";
  try {
    const answer = await fetch(logs.dataset.from);
    if (answer.ok) inside.innerHTML = await answer.text();
    else inside.textContent = "The logs can not be had now. Close and open this to ask again.";
  } catch {
    inside.textContent = "The server does not answer. Close and open this to ask again.";
  }
});

follow({});
