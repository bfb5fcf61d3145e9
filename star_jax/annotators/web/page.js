// Keys, forms that stay on the page, drafts that survive a reload, and a look at what has changed since.
"use strict";
const base = document.body.dataset.base;
const find = (selector) => document.querySelector(selector);
const TYPING_MS = 60000; // after this without a key, a draft no longer keeps the page as it is
let sending = false;
let typed = -Infinity;

function draftKey() {
  const form = find("#answer");
  return form && `star_jax draft ${document.body.dataset.experiment} ${form.dataset.id}`;
}

function ready() {
  const box = find("#response");
  if (box) {
    const kept = localStorage.getItem(draftKey());
    if (kept !== null) box.value = kept;
    box.focus({ preventScroll: true });
    box.setSelectionRange(box.value.length, box.value.length);
  } else if (find("#search")) {
    find("#search").focus({ preventScroll: true });
  }
  for (const id of ["guidelines", "agreement", "recent"]) {
    const part = document.getElementById(id);
    const kept = part && localStorage.getItem(`star_jax open ${id}`);
    if (kept) part.open = kept === "yes";
    else if (part && id === "guidelines" && matchMedia("(max-width: 60rem)").matches) part.open = false;
  }
}

function show(text, address) {
  const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("page");
  if (!fresh) throw new Error("this is not the page");
  find("#page").replaceWith(fresh);
  find("#lost").hidden = true;
  if (address) history.replaceState(null, "", address);
  ready();
}

function lost(what) {
  find("#lost-what").textContent = what;
  find("#lost").hidden = false;
}

async function send(form, button) {
  if (sending) return;
  sending = true;
  const fields = new URLSearchParams(new FormData(form));
  if (button && button.name) fields.set(button.name, button.value);
  const draft = form.matches("#answer, #skipping form") ? draftKey() : null; // `form.id` is the field of that name
  try {
    const answer = await fetch(form.action, { method: "POST", body: fields });
    if (!answer.ok && answer.status !== 422 && answer.status !== 413) throw new Error(answer.statusText);
    if (answer.ok && draft) localStorage.removeItem(draft);
    show(await answer.text(), answer.ok ? answer.url : null);
  } catch {
    lost("What you have just entered is not saved; it is kept in this browser.");
  } finally {
    sending = false;
  }
}

async function look() {
  try {
    const state = await fetch(`${base}state`);
    if (!state.ok) throw new Error(state.statusText);
    const { version } = await state.json();
    const page = find("#page");
    find("#lost").hidden = true;
    const box = find("#response");
    const busy = sending || find("#skipping")?.open || (box && performance.now() - typed < TYPING_MS) ||
      document.activeElement?.id === "who" || find("#search")?.value;
    if (version !== page.dataset.version && !busy) {
      const answer = await fetch(location.href);
      if (!answer.ok) throw new Error(answer.statusText);
      const text = await answer.text();
      if (!sending) show(text);
    }
  } catch {
    lost("");
  }
  setTimeout(look, find("#page").dataset.phase === "labelling" ? 3000 : 1000);
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.target, event.submitter);
});

document.addEventListener("input", (event) => {
  if (event.target.id === "response") {
    typed = performance.now();
    localStorage.setItem(draftKey(), event.target.value);
  }
  if (event.target.id === "search") {
    const wanted = event.target.value.trim().toLowerCase();
    for (const button of document.querySelectorAll(".answers button"))
      button.hidden = !button.value.toLowerCase().includes(wanted);
  }
});

document.addEventListener("change", (event) => {
  if (event.target.id === "who") send(event.target.form);
});

document.addEventListener("toggle", (event) => {
  const part = event.target;
  if (part.id === "skipping" && part.open) part.querySelector("button").focus();
  else if (part.id && part.tagName === "DETAILS") localStorage.setItem(`star_jax open ${part.id}`, part.open ? "yes" : "no");
}, true);

document.addEventListener("keydown", (event) => {
  const box = event.target;
  const typing = box.matches("textarea, input");
  if (event.ctrlKey || event.metaKey || event.isComposing) return;
  // With Alt, some keyboards make another letter of it.
  const key = (event.altKey ? event.code.replace("Key", "") : event.key).toLowerCase();
  const skipping = find("#skipping");
  let target = null;
  if (key === "enter" && box.id === "response" && !event.shiftKey) target = find("#answer button.main");
  else if (key === "enter" && box.id === "search") target = find(".answers button:not([hidden])");
  else if (key === "enter" && !box.matches("button, a, summary, input, textarea")) target = find("#now");
  else if (key === "escape" && skipping?.open) skipping.open = false;
  else if (typing && !event.altKey) return;
  else if (/^[1-9]$/.test(key)) target = find(`${skipping?.open ? "#skipping" : "#answer"} button[data-key="${key}"]`);
  else if (key === "u") target = find("#undo");
  else if (key === "s") target = find("#skipping summary");
  else if (key === "g") target = find("#guidelines summary");
  // A key that is held down answers once: by then, another example is on the page.
  const again = event.repeat && (target || (key === "enter" && !box.matches("textarea")));
  if (!target && !again) return;
  event.preventDefault();
  if (!again) target.click();
});

ready();
look();
