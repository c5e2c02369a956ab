"use strict";
// J and K go from case to case, Enter opens the slices of the one that is looked at.
const cases = [...document.querySelectorAll("article.case")];
let at = -1;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { j: 1, k: -1 }[event.key.toLowerCase()];
  const here = cases.indexOf(document.activeElement); // a link of the list leads to a case, too
  if (here >= 0) at = here;
  if (by && cases.length) {
    at = Math.min(Math.max(at + by, 0), cases.length - 1);
    cases[at].focus();
    cases[at].scrollIntoView({ block: "start" });
  } else if (event.key === "Enter" && here >= 0) {
    const viewer = cases[at].querySelector("a[target]");
    if (viewer) viewer.click();
  }
});
