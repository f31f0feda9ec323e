"use strict";
// Tables sort by the value of a cell (data-v where its text is not the value); the second press turns the order around.
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column], raw = cell.dataset.v ?? cell.textContent.trim(), number = Number(raw);
    return raw === "" ? null : Number.isNaN(number) ? raw : number;
  };
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const falls = head.getAttribute("aria-sort") === "ascending" || (!head.hasAttribute("aria-sort") && head.dataset.first === "falls");
    const body = table.tBodies[0];
    const order = (a, b) => {
      const x = value(a, column), y = value(b, column);
      if (x === null || y === null) return (x === null) - (y === null);
      const less = typeof x === typeof y ? (typeof x === "number" ? x - y : x.localeCompare(y)) : typeof x === "number" ? -1 : 1;
      return falls ? -less : less;
    };
    body.append(...[...body.rows].sort(order));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  }));
}
// All clips in view play as one: one clock, one sound.
const player = document.querySelector(".player");
if (player) {
  const tiles = [...document.querySelectorAll(".tile")], $ = part => player.querySelector(part);
  const play = $(".play"), place = $("input[type=range]"), shown = $("output"), sound = $(".sound"), clip = $(".clip"), rate = $(".rate select");
  for (const tile of tiles) {  // as files in memory: some browsers seek in no data address
    const video = tile.querySelector("video"), bytes = Uint8Array.from(atob(video.src.split(",")[1]), c => c.charCodeAt(0));
    video.src = URL.createObjectURL(new Blob([bytes], {type: "video/mp4"}));
    video.controls = false; video.muted = true; video.loop = false;
  }
  let on = false;
  const seen = () => tiles.filter(tile => !tile.hidden);
  const videos = () => seen().map(tile => tile.querySelector("video"));
  const leader = () => (seen().find(tile => tile.dataset.of === sound.value) ?? seen()[0]).querySelector("video");
  const length = () => Math.max(...videos().map(video => video.duration || 0));
  const all = time => videos().forEach(video => { video.currentTime = Math.min(time, video.duration || 0); });
  const show = () => {
    const time = leader().currentTime, whole = length();
    place.value = whole ? time / whole : 0;
    shown.textContent = `${time.toFixed(1)} / ${whole.toFixed(1)} s`;
    place.setAttribute("aria-valuetext", shown.textContent);
  };
  const start = () => {
    on = true; play.textContent = "Pause";
    videos().forEach(video => { video.playbackRate = Number(rate.value); video.play().catch(() => {}); });
  };
  const stop = () => { on = false; play.textContent = "Play all"; videos().forEach(video => video.pause()); show(); };
  const hear = () => tiles.forEach(tile => {
    const heard = !tile.hidden && tile.dataset.of === sound.value;
    tile.querySelector("video").muted = !heard;
    tile.classList.toggle("heard", heard);
    tile.querySelector(".listen").setAttribute("aria-pressed", heard);
  });
  const choose = () => {
    const time = 0, was = on;
    stop();
    tiles.forEach(tile => { tile.hidden = tile.dataset.clip !== clip.value; });
    hear(); all(time); show();
    if (was) start();
  };
  play.addEventListener("click", () => on ? stop() : start());
  place.addEventListener("input", () => { all(place.value * length()); show(); });
  sound.addEventListener("change", hear);
  clip.addEventListener("change", choose);
  rate.addEventListener("change", () => videos().forEach(video => { video.playbackRate = Number(rate.value); }));
  for (const tile of tiles) {
    tile.querySelector(".listen").addEventListener("click", () => {
      sound.value = sound.value === tile.dataset.of ? "" : tile.dataset.of; hear();
      if (!on && sound.value) start();
    });
    tile.querySelector("video").addEventListener("loadedmetadata", show);
  }
  const tick = () => {
    if (on) {
      const first = leader(), time = first.currentTime;
      if (first.ended || time >= first.duration - 0.02) { all(0); start(); }
      else videos().forEach(video => {
        if (video !== first && Math.abs(video.currentTime - time) > 0.06) video.currentTime = Math.min(time, video.duration || 0);
        if (video.paused && !video.ended) video.play().catch(() => {});
      });
      show();
    }
    setTimeout(tick, 100);
  };
  document.addEventListener("keydown", event => {
    if (event.key === " " && !event.target.closest("button, select, input, summary, a")) {
      const box = player.parentElement.getBoundingClientRect();
      if (box.top < innerHeight && box.bottom > 0) { event.preventDefault(); play.click(); }
    }
  });
  player.hidden = false;
  choose(); tick();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.dataset.was = part.open; part.open = true; }));
addEventListener("afterprint", () => document.querySelectorAll("details").forEach(part => { part.open = part.dataset.was === "true"; }));
