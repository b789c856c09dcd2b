"use strict";
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const cards = [...document.querySelectorAll("#cards > article")];
  const selects = [...form.querySelectorAll("select")];
  const values = (card, select) => card.dataset[select.name].split("\n").filter(Boolean);

  for (const select of selects) {
    const found = new Set(cards.flatMap((card) => values(card, select)));
    select.append(...[...found].sort().map((value) => new Option(value, value)));
    select.parentElement.hidden = found.size < 2;
  }

  // Each choice offers what the choices before it leave; one that is not offered any more falls back to all.
  const update = () => {
    let left = cards;
    for (const select of selects) {
      const offered = new Set(left.flatMap((card) => values(card, select)));
      for (const option of select.options) {
        option.hidden = option.disabled = option.value !== "" && !offered.has(option.value);
      }
      if (select.selectedOptions[0].disabled) select.value = "";
      if (select.value) left = left.filter((card) => values(card, select).includes(select.value));
    }
    for (const card of cards) card.hidden = !left.includes(card);
    const all = left.length === cards.length ? "" : ` of ${cards.length}`;
    document.getElementById("shown").textContent = `${left.length}${all} examples`;
  };

  form.hidden = false;
  form.addEventListener("change", update);
  update();
})();
