"use strict";
document.documentElement.classList.add("js");

const GAP = 16; // px between the pictures of a row, as in the style
const MOST = 4; // largest enlargement of pictures

/* Shows an image at a number of screen pixels per image pixel; a whole number from 1 on, and then without smoothing. */
function resize(image, factor) {
  const ratio = factor / devicePixelRatio;
  image.style.width = `${image.getAttribute("width") * ratio}px`;
  image.style.height = `${image.getAttribute("height") * ratio}px`;
  image.style.imageRendering = factor < 1 ? "auto" : "pixelated";
}

/* The largest factor at which an image fits: whole, or below 1 for an image that is larger than the room. */
function fitting(image, width, height = Infinity) {
  const sides = [width / image.getAttribute("width"), height / image.getAttribute("height")];
  const factor = devicePixelRatio * Math.min(...sides);
  return factor < 1 ? factor : Math.floor(factor);
}

/* Puts as many pictures in a row as fit unshrunk. */
function layOut(pictures) {
  const images = [...pictures.querySelectorAll("img")];
  const room = (columns) => (pictures.clientWidth - GAP * (columns - 1)) / columns;
  const fits = (columns) => images.every((image) => fitting(image, room(columns)) >= 1);
  let columns = images.length;
  while (columns > 1 && !fits(columns)) columns -= 1;
  for (const image of images) {
    const enlargement = Math.max(1, fitting(image, room(columns), 0.6 * innerHeight));
    resize(image, Math.min(MOST, enlargement, fitting(image, room(columns))));
  }
}

function startSlider(slider) {
  const [left, size, right] = slider.querySelectorAll("select");
  const [view, scroller, stage, line] = [".view", ".scroller", ".stage", ".line"].map((c) => slider.querySelector(c));
  const range = slider.querySelector("input");
  const images = [...slider.querySelectorAll("img")];

  /* The left image lies below the right one, which is cut off at the line. */
  function draw() {
    const x = (range.value / 100) * scroller.clientWidth;
    line.style.left = `${x}px`;
    line.style.height = `${scroller.clientHeight}px`;
    for (const image of images) {
      const isRight = image.alt === right.value && left.value !== right.value;
      image.parentElement.style.visibility = isRight || image.alt === left.value ? "visible" : "hidden";
      image.parentElement.style.zIndex = isRight ? 1 : 0;
      image.style.clipPath = isRight ? `inset(0 0 0 ${scroller.scrollLeft + x}px)` : "none";
    }
    range.setAttribute("aria-valuetext", `${range.value} % ${left.value}, the rest ${right.value}`);
  }

  /* The middle of what is seen stays in the middle. */
  function lay() {
    const x = (scroller.scrollLeft + scroller.clientWidth / 2) / scroller.scrollWidth;
    const y = (scroller.scrollTop + scroller.clientHeight / 2) / scroller.scrollHeight;
    const best = fitting(images[0], slider.parentElement.clientWidth, 0.8 * innerHeight);
    size.options[0].text = `to fit (${best < 1 ? `${Math.round(100 * best)} %` : `${best}×`})`;
    for (const image of images) resize(image, Number(size.value) || best);
    range.style.width = `${view.clientWidth}px`;
    const isLarge = stage.offsetWidth > scroller.clientWidth || stage.offsetHeight > scroller.clientHeight;
    view.classList.toggle("large", isLarge);
    scroller.scrollLeft = x * scroller.scrollWidth - scroller.clientWidth / 2;
    scroller.scrollTop = y * scroller.scrollHeight - scroller.clientHeight / 2;
    draw();
  }

  function follow(event) {
    const box = scroller.getBoundingClientRect();
    range.value = (100 * (event.clientX - box.left)) / scroller.clientWidth;
    draw();
  }

  for (const handle of [stage, line]) {
    handle.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      // A finger on an image that is larger than its window moves the image; on the line, it moves the line.
      if (handle === stage && event.pointerType === "touch" && view.classList.contains("large")) return;
      handle.setPointerCapture(event.pointerId);
      range.focus({ preventScroll: true, focusVisible: false });
      event.preventDefault();
      follow(event);
    });
    handle.addEventListener("pointermove", (event) => {
      if (handle.hasPointerCapture(event.pointerId)) follow(event);
    });
  }
  for (const choice of [left, right, range]) choice.addEventListener("input", draw);
  scroller.addEventListener("scroll", draw);
  size.addEventListener("input", lay);
  addEventListener("resize", lay);
  lay();
}

/* Numbers by value, everything else as text; missing numbers come last in either direction. */
function sort(table, head) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const text = (row) => row.cells[head.cellIndex].textContent;
  const number = (row) => parseFloat(text(row).replaceAll(",", "").replace(/^([-+]?)inf/, "$1Infinity"));
  const compare = (a, b) => {
    if (!head.classList.contains("number")) return direction * text(a).localeCompare(text(b), "en", { numeric: true });
    const [x, y] = [number(a), number(b)];
    return Number.isNaN(x) - Number.isNaN(y) || direction * (x < y ? -1 : x > y ? 1 : 0);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

function startTable(table) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}

/* Where a browser does not let a page write to the clipboard, the command is selected instead. */
function startCode(code) {
  const button = code.querySelector("button");
  button.addEventListener("click", async () => {
    const command = code.querySelector("code");
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(command);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

const all = (selector) => document.querySelectorAll(selector);
const layOutAll = () => all(".pictures").forEach(layOut);
addEventListener("resize", layOutAll);
layOutAll();
all(".slider").forEach(startSlider);
all("table").forEach(startTable);
all(".code").forEach(startCode);
