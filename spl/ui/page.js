// Keeps the page current: replaces the parts that the daemon sends, and says so when it hears nothing.
// Text never becomes markup here: the daemon makes all of it, with and without this script.
"use strict";

const AGAIN_MS = 1000, AGAIN_MAX_MS = 4000, SILENCE_MS = 45000;
const live = document.getElementById("live");
const channel = "BroadcastChannel" in window ? new BroadcastChannel("spl-page") : null;
let main = document.querySelector("main");
let source = null;        // our stream, while this window has the one of the browser
let letGo = null;         // ends our turn with the stream
let heardMs = 0;          // when anything came, by our clock
let aheadMs = 0;          // how far the daemon's clock is ahead of ours
let again = 0, restMs = AGAIN_MS;
let fetching = null;      // the parts that came while the page is fetched
let state = "";

// what is shown

function parsed(html) {
  return new DOMParser().parseFromString(html, "text/html");
}

function show(part) {
  if (fetching) fetching.push(part);
  const [epoch, seen] = main.dataset.from.split(".");
  if (part.n <= Number(seen)) return;
  main.dataset.from = epoch + "." + part.n;
  hear(part.at);
  const old = document.getElementById(part.id);
  if (!part.html) return old && old.remove();
  // Outside a table the parser drops its parts.
  const made = parsed(part.html.startsWith("<tbody") ? "<table>" + part.html + "</table>" : part.html)
    .getElementById(part.id);
  if (!made) return;
  if (!old) document.getElementById("pairs").append(made);
  else replace(old, made);
  tick();
}

function replace(old, made) {
  if (old.isEqualNode(made)) return;
  const was = [...old.querySelectorAll("details")].map((each) => each.open);
  [...made.querySelectorAll("details")].forEach((each, n) => { each.open = Boolean(was[n]); });
  const focused = old.contains(document.activeElement) ? document.activeElement.tagName.toLowerCase() : "";
  const place = focused ? [...old.querySelectorAll(focused)].indexOf(document.activeElement) : -1;
  old.replaceWith(made);
  if (place >= 0) made.querySelectorAll(focused)[place]?.focus({ preventScroll: true });
}

async function refetch() {
  if (fetching) return;
  fetching = [];
  try {
    const answer = await fetch("./", { cache: "no-store", headers: { accept: "text/html" } });
    if (answer.status === 401 || answer.status === 403) return ended();
    if (!answer.ok) throw new Error(String(answer.status));
    const found = parsed(await answer.text());
    const made = found.querySelector("main");
    const open = [...main.querySelectorAll("[id] details[open]")].map((each) => each.closest("[id]").id);
    for (const id of open) made.querySelector("#" + CSS.escape(id) + " details")?.setAttribute("open", "");
    main.replaceWith(made);
    main = made;
    hear(made.dataset.at);
    const missed = fetching;
    fetching = null;
    missed.forEach(show);
    tick();
  } finally {
    fetching = null;
  }
}

// what is known of the daemon

function hear(at) {
  heardMs = Date.now();
  if (at) aheadMs = Date.parse(at) - heardMs;
}

function say(now, text) {
  if (state === now) return;
  state = now;
  live.className = now;
  live.textContent = text;
  document.body.classList.toggle("lost", now === "lost");
}

function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour12: false });
}

function alive() {
  say("live", "live");
}

function lost() {
  if (state !== "ended") say("lost", "disconnected: what is shown is of " + clock(heardMs || Date.now()));
}

function ended() {
  letGo?.();
  say("lost", "this session has ended: spl ui makes a new link");
  state = "ended";
}

function span(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 60) return s + "s";
  if (s < 3600) return Math.floor(s / 60) + "m";
  return s < 48 * 3600 ? Math.floor(s / 3600) + "h" : Math.floor(s / 86400) + "d";
}

function tick() {
  if (document.hidden) return;
  for (const each of document.querySelectorAll("time[datetime]:not([data-fixed])")) {
    const text = span(Date.now() + aheadMs - Date.parse(each.dateTime)) + " ago";
    if (each.textContent !== text) each.textContent = text;
  }
  if (state === "live" && Date.now() - heardMs > SILENCE_MS) {
    lost();
    if (source) open();
  }
}

// the stream: one for all windows of a browser, held by one that is visible

function take(kind, value, ours) {
  if (ours) channel?.postMessage({ kind, value });
  if (kind === "lost") return lost();
  if (kind === "ended") return ended();
  hear(value.at);
  if (kind === "part") show(value);
  if (kind === "stale") {
    return refetch().then(() => { if (ours && source) open(); else if (state !== "ended") alive(); }, () => ours && retry());
  }
  alive();
}

function open() {
  source?.close();
  clearTimeout(again);
  const mine = source = new EventSource("events?from=" + main.dataset.from);
  const told = (kind, event) => { if (mine === source) take(kind, JSON.parse(event.data), true); };
  mine.onopen = () => { if (mine === source) { restMs = AGAIN_MS; take("heard", {}, true); } };
  for (const kind of ["part", "stale", "heartbeat"]) mine.addEventListener(kind, (event) => told(kind, event));
  mine.addEventListener("server_shutdown", retry);
  // An answer that is no stream, such as a proxy's 502, ends an EventSource for good; so a new one is made each time.
  mine.addEventListener("error", (event) => {
    if (mine !== source) return;
    if (event.data && JSON.parse(event.data).code === "revoked") take("ended", {}, true);
    else retry();
  });
}

function retry() {
  if (!source) return;
  source.close();
  take("lost", {}, true);
  clearTimeout(again);
  again = setTimeout(() => source && check(), restMs);
  restMs = Math.min(AGAIN_MAX_MS, 1.5 * restMs);
}

async function check() {
  // An EventSource does not say why it failed; this does.
  try {
    const answer = await fetch("./", { method: "HEAD", cache: "no-store" });
    if (answer.status === 401 || answer.status === 403) return take("ended", {}, true);
    if (!answer.ok) return retry();
  } catch {
    return retry();
  }
  if (source) open();
}

function hold() {
  return new Promise((resolve) => {
    letGo = () => {
      source?.close();
      source = letGo = null;
      clearTimeout(again);
      resolve();
    };
    if (document.hidden || state === "ended") letGo();
    else open();
  });
}

let asked = false;
async function turn() {
  if (asked || document.hidden || state === "ended") return;
  asked = true;
  if (navigator.locks) await navigator.locks.request("spl-page", hold);
  else await hold();
  asked = false;
  turn();
}

if (channel) channel.onmessage = ({ data }) => { if (!source) take(data.kind, data.value, false); };
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return letGo?.();
  if (heardMs) refetch().catch(lost);
  turn();
});
window.addEventListener("pagehide", () => letGo?.());
window.addEventListener("pageshow", (event) => { if (event.persisted) { refetch().catch(lost); turn(); } });
window.addEventListener("hashchange", () => document.querySelector(":target details")?.setAttribute("open", ""));
setInterval(tick, 1000);
hear(main.dataset.at);
turn();
