"use strict";
const open = () => [...document.querySelectorAll("details[open]")].map(d => d.id);
setInterval(async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(4000) });
    if (!answer.ok) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html"), was = open();
    for (const name of ["header", "main"]) {
      const old = document.querySelector(name), young = next.querySelector(name);
      if (old.innerHTML === young.innerHTML) continue;
      const left = [...old.querySelectorAll(".wide")].map(w => w.scrollLeft);
      old.replaceWith(young);
      young.querySelectorAll(".wide").forEach((w, n) => { w.scrollLeft = left[n] || 0; });
    }
    for (const id of was) if (id && document.getElementById(id)) document.getElementById(id).open = true;
    document.body.classList.remove("stale");
  } catch { document.body.classList.add("stale"); }
}, REFRESH_SECONDS * 1000);
