// The stream of events of a page: open while the page is visible; the browser opens it again when
// it breaks. What the server renders replaces only those parts of the page that have changed.

const page = document.getElementById("sojourn");
const away = document.getElementById("away");

function show(live, state) {
  const dot = document.getElementById("live-dot");
  dot.classList.toggle("status-dot-live", live);
  dot.classList.toggle("status-dot-error", !live);
  document.getElementById("live-state").textContent = state;
}

// Show why the page may be out of date; an empty sentence ends that.
function warn(sentence) {
  away.textContent = sentence;
  away.hidden = !sentence;
  show(!sentence, sentence ? "Waiting" : "Live");
}

// Replace the parts that have changed; the others keep what was opened or scrolled in them.
export function renew(live, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  const parts = [...live.querySelectorAll("[data-part]")];
  const known = new Map(parts.map((part) => [part.dataset.part, part]));
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

// Follow the stream; ``handlers`` has a function for each kind of event that only this page knows,
// ``query`` returns what the stream is asked for. Return a function that asks again.
export function follow(handlers, query = () => "") {
  let source = null;
  const live = document.getElementById("live");

  function open() {
    source = new EventSource(page.dataset.stream + query());
    source.addEventListener("open", () => show(true, "Live"));
    source.addEventListener("error", () => {
      warn("The server does not answer. What is shown may be old.");
    });
    source.addEventListener("away", (event) => warn(JSON.parse(event.data)));
    source.addEventListener("part", (event) => {
      warn("");
      renew(live, JSON.parse(event.data));
    });
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        warn("");
        handle(JSON.parse(event.data));
      });
    }
  }

  // A browser keeps only a few connections to one server: a hidden page gives its own back.
  document.addEventListener("visibilitychange", () => {
    source?.close();
    if (!document.hidden) open();
  });
  window.addEventListener("pagehide", () => source?.close());
  open();
  return () => {
    source.close();
    open();
  };
}
