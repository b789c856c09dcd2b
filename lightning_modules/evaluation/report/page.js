"use strict";
(() => {
  const form = document.getElementById("filter");
  if (!form) return;
  const cards = [...document.querySelectorAll("#cards > article")];
  const groups = form.elements.namedItem("group");
  const shown = document.getElementById("shown");
  const chosen = (name) => {
    const field = form.elements.namedItem(name);
    if (!field) return "";
    return field.type === "checkbox" ? (field.checked ? "yes" : "") : field.value;
  };

  // Of the groups of all benchmarks, those of the chosen one are offered.
  const offerGroups = (benchmark) => {
    for (const list of groups.querySelectorAll("optgroup")) {
      const offered = !benchmark || list.dataset.benchmark === benchmark;
      list.hidden = !offered;
      list.disabled = !offered;
    }
    const list = groups.selectedOptions[0]?.parentElement;
    if (list instanceof HTMLOptGroupElement && list.disabled) groups.value = "";
  };

  const update = () => {
    offerGroups(chosen("benchmark"));
    const wanted = { benchmark: chosen("benchmark"), outcome: chosen("outcome"), change: chosen("change"),
      disagree: chosen("disagree") };
    const group = chosen("group");
    let count = 0;
    for (const card of cards) {
      const fits = Object.entries(wanted).every(([name, value]) => !value || card.dataset[name] === value)
        && (!group || card.dataset.groups.split("\n").includes(group));
      card.hidden = !fits;
      count += fits;
    }
    shown.textContent = count === cards.length ? `${count} examples` : `${count} of ${cards.length} examples`;
  };

  form.hidden = false;
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
})();
