// Filters of the table of answers, kept in the address: #answers?of=1&change=worse. Without this script all are shown.
"use strict";
for (const section of document.querySelectorAll("[data-questions]")) {
  const form = section.querySelector("form");
  const questions = [...section.querySelectorAll(".question")].map((element) => ({
    element,
    set: element.dataset.set,
    verdicts: element.dataset.verdicts.split("|"),
    shares: element.dataset.shares.split("|"),
  }));

  const passes = (question, wanted) => {
    if (wanted.set && question.set !== wanted.set) return false;
    if (wanted.verdict && !question.verdicts[wanted.of].split(" ").includes(wanted.verdict)) return false;
    if (wanted.change) {
      const [ours, theirs] = [question.shares[wanted.of], question.shares[wanted.to]];
      if (ours === "" || theirs === "") return false;
      const difference = Number(ours) - Number(theirs);
      if (wanted.change === "better" ? difference <= 0 : wanted.change === "worse" ? difference >= 0 : !difference) return false;
    }
    return !wanted.text || question.element.textContent.toLowerCase().includes(wanted.text.toLowerCase());
  };

  const update = (event) => {
    const wanted = Object.fromEntries(new FormData(form));
    let shown = 0;
    for (const question of questions) {
      question.element.hidden = !passes(question, wanted);
      shown += !question.element.hidden;
    }
    for (const group of section.querySelectorAll(".group")) {
      group.hidden = !group.querySelector(".question:not([hidden])");
    }
    if (event) history.replaceState(null, "", `#answers?${new URLSearchParams(wanted)}`);
    form.querySelector("output").textContent = `${shown} of ${questions.length} questions`;
  };

  for (const [name, value] of new URLSearchParams(location.hash.split("?")[1])) {
    if (form.elements[name]) form.elements[name].value = value;
  }
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
  if (location.hash.startsWith("#answers?")) section.scrollIntoView();
}
