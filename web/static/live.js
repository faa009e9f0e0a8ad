// The stream of events of a page: opened while the page is seen, opened again by the browser when it breaks.
// What the server renders replaces only those parts of the page that are different now.

const page = document.getElementById("sojourn");
const away = document.getElementById("away");

function say(live, word) {
  const dot = document.getElementById("live-dot");
  dot.classList.toggle("status-dot-live", live);
  dot.classList.toggle("status-dot-error", !live);
  document.getElementById("live-word").textContent = word;
}

function isAway(sentence) {
  away.textContent = sentence;
  away.hidden = !sentence;
  say(!sentence, sentence ? "Waiting" : "Live");
}

// Put in the parts that have changed; a part that was opened or scrolled keeps that.
export function renew(live, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  const known = new Map([...live.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
  const order = [...fresh.content.querySelectorAll("[data-part]")];
  for (const part of order) {
    const old = known.get(part.dataset.part);
    known.delete(part.dataset.part);
    if (old && old.tagName === "DETAILS") part.open = old.open;
    if (!old) live.append(part);
    else if (old.outerHTML !== part.outerHTML) old.replaceWith(part);
  }
  for (const gone of known.values()) gone.remove();
  order.forEach((part, place) => {
    const there = live.querySelector(`[data-part="${CSS.escape(part.dataset.part)}"]`);
    if (live.children[place] !== there) live.insertBefore(there, live.children[place]);
  });
}

export function follow(tell) {
  let source = null;
  const live = document.getElementById("live");

  function open() {
    source = new EventSource(page.dataset.stream);
    source.addEventListener("open", () => say(true, "Live"));
    source.addEventListener("error", () => isAway("The server does not answer. What is shown may be old."));
    source.addEventListener("away", (event) => isAway(JSON.parse(event.data)));
    source.addEventListener("part", (event) => {
      isAway("");
      renew(live, JSON.parse(event.data));
    });
    for (const [name, take] of Object.entries(tell)) {
      source.addEventListener(name, (event) => {
        isAway("");
        take(JSON.parse(event.data));
      });
    }
  }

  // A browser keeps only a few connections to one server: a page that nobody sees gives its own back.
  document.addEventListener("visibilitychange", () => {
    source?.close();
    if (!document.hidden) open();
  });
  window.addEventListener("pagehide", () => source?.close());
  open();
}
