// What scrolls sideways can be reached with the keyboard.
document$.subscribe(() => {
  for (const box of document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap")) {
    box.tabIndex = 0;
  }
});
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
