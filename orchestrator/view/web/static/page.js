// What all pages have: keys, the search of plain lists, copying, and live parts. Scripts place what the server made.
//
// Pages listen for `act` events: next, previous, left, right, open. A list of [data-row] is walked here.

const KEYS = { j: "next", k: "previous", h: "left", l: "right", Enter: "open" };
const search = document.getElementById("search");
const help = document.getElementById("keys");

function act(name) {
  const event = new CustomEvent("act", { detail: name, cancelable: true });
  if (document.dispatchEvent(event)) walk(name);
}

/** Choose the next or previous visible [data-row], or open the link of the chosen one. */
function walk(name) {
  const rows = [...document.querySelectorAll("[data-row]")].filter((row) => !row.hidden);
  const at = rows.findIndex((row) => row.classList.contains("chosen"));
  if (name === "open") return rows[at]?.querySelector("a")?.click();
  if (name !== "next" && name !== "previous") return;
  const to = rows[Math.min(rows.length - 1, Math.max(0, at + (name === "next" ? 1 : -1)))];
  rows[at]?.classList.remove("chosen");
  to?.classList.add("chosen");
  to?.scrollIntoView({ block: "nearest" });
}

/** Go to the page above: back, if one came from there, so that its search and filters are as they were. */
function goUp() {
  const link = document.querySelector("[data-up]");
  if (!link) return;
  const isAbove = document.referrer.split(/[?#]/)[0] === link.href;
  isAbove ? history.back() : link.click();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape") {
    if (help?.open) return;
    if (typing) {
      if (event.target === search && search.value) {
        search.value = "";
        search.dispatchEvent(new Event("input", { bubbles: true }));
      }
      event.target.blur();
    } else {
      goUp();
    }
  } else if (typing) {
    if (event.key === "Enter" && event.target === search && !search.form) search.blur();
  } else if (event.key === "/") {
    event.preventDefault();
    search?.focus();
    search?.select();
  } else if (event.key === "?") {
    help?.showModal();
  } else if (KEYS[event.key] && !(event.key === "Enter" && event.target.matches?.("a, button, summary, input"))) {
    act(KEYS[event.key]);
  }
});
document.getElementById("keys-button")?.addEventListener("click", () => help.showModal());

document.addEventListener("click", async (event) => {
  const code = event.target.closest?.(".copy");
  if (!code || !navigator.clipboard) return;
  await navigator.clipboard.writeText(code.textContent).catch(() => {});
  code.classList.add("copied");
});

/** Hide the rows of a plain list that have not what is searched for. */
function filterRows() {
  const wanted = search.value.toLowerCase();
  for (const row of document.querySelectorAll("[data-row]")) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
}
if (search?.hasAttribute("data-rows")) {
  search.value = new URLSearchParams(location.search).get("q") ?? "";
  search.addEventListener("input", () => {
    remember({ q: search.value });
    filterRows();
  });
  filterRows();
}

document.querySelector("[data-needs-choice]")?.addEventListener("submit", (event) => {
  const isChosen = event.target.querySelector("input:checked") !== null;
  document.getElementById("none-chosen").hidden = isChosen;
  if (!isChosen) event.preventDefault();
});

/** Keep choices in the address; empty ones are left out. */
export function remember(choices) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(choices)) value ? query.set(name, value) : query.delete(name);
  const words = query.toString();
  history.replaceState(null, "", `${location.pathname}${words ? `?${words}` : ""}${location.hash}`);
}

/** Put a part's HTML, which the server escaped, in its place; what was chosen or checked stays so. */
function putPart(name, html) {
  const part = document.querySelector(`[data-part="${name}"]`);
  if (!part) return;
  const checked = [...part.querySelectorAll("input:checked")].map((box) => box.value);
  const chosen = part.querySelector(".chosen a")?.getAttribute("href");
  part.innerHTML = html;
  for (const box of part.querySelectorAll("input")) box.checked = checked.includes(box.value);
  if (chosen) {
    for (const link of part.querySelectorAll("[data-row] a")) {
      if (link.getAttribute("href") === chosen) link.closest("[data-row]").classList.add("chosen");
    }
  }
  if (search?.hasAttribute("data-rows")) filterRows();
}

// Live: one connection for each tab that can be seen, because a browser has six for all of them. A server that is gone is
// looked for ever more seldom.
const PAUSE_MS = 2000;
const LONGEST_PAUSE_MS = 60000;
let pause = PAUSE_MS;
let live = document.body.dataset.live;
const connection = document.getElementById("connection");
let source = null;
let seen = document.body.dataset.seen ?? "";

function connect() {
  if (!live || source || document.hidden) return;
  const address = new URL(live, location.href);
  address.searchParams.set("seen", seen);
  source = new EventSource(address);
  source.addEventListener("open", () => {
    connection.textContent = "";
    pause = PAUSE_MS;
  });
  source.addEventListener("error", () => {
    connection.textContent = "not connected";
    disconnect();
    setTimeout(connect, pause);
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  });
  source.addEventListener("trouble", (event) => {
    connection.textContent = JSON.parse(event.data);
    disconnect();
    live = null;
  });
  source.addEventListener("parts", (event) => {
    seen = event.lastEventId;
    for (const [name, html] of Object.entries(JSON.parse(event.data))) putPart(name, html);
  });
  source.addEventListener("grid", (event) => {
    seen = event.lastEventId;
    document.dispatchEvent(new CustomEvent("grid", { detail: JSON.parse(event.data) }));
  });
}

function disconnect() {
  source?.close();
  source = null;
}
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
addEventListener("pagehide", disconnect);
addEventListener("pageshow", connect);
connect();
