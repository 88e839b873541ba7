// The log of a trial: pieces of bytes from the server, of which a few are in the page at a time, followed while it grows.

import { remember } from "./page.js";

const KEPT = 6; // pieces in the page
const NEAR = 1200; // pixels from an end at which the next piece is asked for
const LOOK_MS = 1000;
const LONGEST_PAUSE_MS = 60000; // between two looks at a server that does not answer

const box = document.getElementById("log-text");
const file = document.getElementById("log-file");
const range = document.getElementById("log-at");
const words = document.getElementById("search");
const where = document.getElementById("log-place");

let pieces = []; // { begin, end, element }, in order
let size = 0;
let isOver = false;
let isFollowing = true;
let busy = false;
let isFinding = "";
let pause = LOOK_MS;

/** Ask for a piece. After a refusal nothing is looked at again unless somebody asks. */
async function ask(query) {
  const address = new URL(box.dataset.log, location.href);
  for (const [name, value] of Object.entries({ file: file.value, ...query })) address.searchParams.set(name, value);
  const answer = await fetch(address).catch(() => {
    throw new Error("not connected");
  });
  if (!answer.ok) {
    isOver = true;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    throw new Error(`${(page.querySelector(".trouble") ?? page.body).textContent} The log is not followed any more.`);
  }
  const piece = await answer.json();
  size = piece.size;
  isOver = piece.over;
  return piece;
}

function made(piece) {
  const element = document.createElement("pre");
  element.innerHTML = piece.html; // escaped by the server
  return { begin: piece.begin, end: piece.end, element };
}

/** One request at a time; what comes meanwhile is asked for by the next scroll or look. */
async function alone(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
    if (pause > LOOK_MS) tell(); // the trouble is over
    pause = LOOK_MS;
  } catch (error) {
    where.textContent = error.message;
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  } finally {
    busy = false;
  }
}

function tell() {
  if (!pieces.length) return;
  const part = size ? Math.round((100 * pieces.at(-1).end) / size) : 100;
  where.textContent = size ? `to ${part} % of ${size.toLocaleString("en")} bytes${isOver ? "" : ", following"}` : isOver ? "empty" : "nothing yet";
  if (document.activeElement !== range) range.value = size ? (1000 * pieces[0].begin) / size : 1000;
}

/** Show the log from one place on: the end without a query. */
async function jump(query = {}) {
  const piece = await ask(query);
  if (piece.missing) {
    where.textContent = "not found after this place";
    return;
  }
  pieces = [made(piece)];
  box.replaceChildren(pieces[0].element);
  isFollowing = !("at" in query);
  // What is shorter than the box cannot be scrolled, so nothing else would ask for more.
  for (let count = 0; count < pieces.length && count < KEPT && box.scrollHeight <= box.clientHeight; count++) {
    if (isFollowing && pieces[0].begin > 0) await earlier();
    else if (!isFollowing && pieces.at(-1).end < size) await later();
  }
  box.scrollTop = isFollowing ? box.scrollHeight : 0;
  tell();
}

async function later() {
  const piece = await ask({ at: pieces.at(-1).end });
  if (piece.size < pieces.at(-1).end) return jump(); // it was written anew
  if (piece.end === piece.begin) return;
  const atEnd = isFollowing && box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  pieces.push(made(piece));
  box.append(pieces.at(-1).element);
  while (pieces.length > KEPT) {
    const height = pieces[0].element.offsetHeight;
    pieces.shift().element.remove();
    if (!atEnd) box.scrollTop -= height;
  }
  if (atEnd) box.scrollTop = box.scrollHeight;
  tell();
}

async function earlier() {
  const piece = await ask({ before: pieces[0].begin });
  if (piece.end === piece.begin) return;
  pieces.unshift(made(piece));
  box.prepend(pieces[0].element);
  box.scrollTop += pieces[0].element.offsetHeight;
  while (pieces.length > KEPT) pieces.pop().element.remove();
  tell();
}

box.addEventListener("scroll", () => {
  if (!pieces.length) return;
  const below = box.scrollHeight - box.scrollTop - box.clientHeight;
  isFollowing = below < 40 && pieces.at(-1).end >= size;
  if (box.scrollTop < NEAR && pieces[0].begin > 0) alone(earlier);
  else if (below < NEAR && pieces.at(-1).end < size) alone(later);
});
range.addEventListener("change", () => alone(() => jump({ at: Math.floor((range.value / 1000) * size), near: 1 })));
document.getElementById("log-start").addEventListener("click", () => alone(() => jump({ at: 0 })));
document.getElementById("log-end").addEventListener("click", () => alone(() => jump()));
file.addEventListener("change", () => {
  remember({ file: file.value === "agent.log" ? "" : file.value });
  alone(() => jump());
});
document.getElementById("log-tools").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!words.value) return;
  const from = pieces.length && isFinding === words.value ? pieces[0].begin + 1 : 0;
  isFinding = words.value;
  alone(() => jump({ find: words.value, at: from }));
});
const asked = new URLSearchParams(location.search).get("file");
if (asked && [...file.options].some((option) => option.value === asked)) file.value = asked;
await alone(() => jump());

/** Look for what is new, again and again. */
async function follow() {
  if (!document.hidden && !isOver) await alone(() => (pieces.length && pieces.at(-1).end ? later() : jump()));
  setTimeout(follow, pause);
}
setTimeout(follow, pause);
