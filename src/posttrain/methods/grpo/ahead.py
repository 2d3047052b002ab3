"""Generation one step ahead: while the trainer updates on one batch, the server already samples the next.

A step then takes the longer of the two instead of their sum. The batch of step n + 1 is sampled with the weights that
step n started from, so it is one update old when it is trained on; TRL's importance sampling weighs each token by what
the update changed. A run that goes on from a checkpoint samples its first batch with the checkpoint's own weights.
"""

from pathlib import Path
from typing import Any

from posttrain.console import say
from posttrain.methods.grpo.dynamic_sampling import ChosenQuestions
from posttrain.methods.grpo.questions import Questions
from posttrain.methods.grpo.rounds import Scored


class AskedAhead(ChosenQuestions):
    """Draws the questions of a step during the one before it, and has the server answer them meanwhile."""

    def __init__(self, trainer: Any, questions: Questions) -> None:
        super().__init__(trainer, questions, generations=2)
        self.next: list[dict[str, Any]] = []  # questions of the next generation, where they are drawn already
        self.sent_at: int | None = None  # updates that the weights have with which a server answers them now
        self.in_step = False

    def generation(self) -> Scored:
        """This process's share of the generation that was sent ahead; of a fresh one where none was."""
        asked = self.next or self.questions.draw(self.places)
        self.staleness = 0 if self.sent_at is None else self.trainer.state.global_step - self.sent_at
        self.next, self.sent_at, self.in_step = [], None, True
        scored, groups = self.ask(asked)
        self.in_step = False
        self.settle(groups)
        self.trainer._metrics["train"]["staleness"].append(float(self.staleness))
        return scored

    def completions_are_there(self) -> None:
        """Send the next generation's questions, unless none will be trained on."""
        trainer = self.trainer
        if not self.in_step or trainer.state.global_step + 1 >= trainer.state.max_steps:
            return
        self.next, self.sent_at = self.questions.draw(self.places), trainer.state.global_step
        if trainer.accelerator.is_main_process:
            prompts, *_ = trainer._tokenize_prompts([row["prompt"] for row in self.next])
            trainer.vllm_generation.vllm_client.send_ahead(prompts)

    def before_new_weights(self) -> None:
        """Weights do not change under a request."""
        if self.trainer.accelerator.is_main_process:
            self.trainer.vllm_generation.vllm_client.wait()

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; the questions that were sent when it was written are asked again."""
        super().restore(checkpoint)
        self.next = [self.questions.rows[name] for name in self.questions.drawn]
        if self.next:
            say(f"{checkpoint}: completions of the step after it were under way; they are sampled anew, by its weights")
