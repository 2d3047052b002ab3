"""Talk to a checkpoint in the terminal; with --compare every question goes to two.

    python src/chat.py outputs/tiny_sft/final [--compare outputs/tiny_grpo/final] [--temperature 0.7]

A line is a question. `/new` forgets the conversation, Ctrl-C cuts an answer off, `/quit` or the end of input leaves.
"""

import argparse

from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.models.source import check_model
from posttrain.processes import leave_ctrl_c


def main() -> None:
    asked = parse_arguments()
    names = [asked.model, asked.compare] if asked.compare else [asked.model]
    for name in names:
        check_model(name)

    from transformers import TextStreamer

    from posttrain.generation.chat import Chat

    models = [Chat(name, prompt=asked.prompt, temperature=asked.temperature) for name in names]
    histories: list[list[dict[str, str]]] = [[] for _ in models]
    leave_ctrl_c()
    while (line := read_line()) is not None:
        if line == "/new":
            histories = [[] for _ in models]
            continue
        for name, model, history in zip(names, models, histories, strict=True):
            if len(models) > 1:
                print(f"── {name}")
            history.append({"role": "user", "content": line})
            streamer = TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
            try:
                answer = model.chat(history, asked.max_new_tokens, streamer)
            except KeyboardInterrupt:
                print()
                history.pop()  # an answer cut off is no part of the conversation
                continue
            history.append({"role": "assistant", "content": answer})


def read_line() -> str | None:
    """The next line that is not empty, or None at the end."""
    try:
        while not (line := input("> ").strip()):
            pass
    except (EOFError, KeyboardInterrupt):
        print()
        return None
    return None if line == "/quit" else line


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint directory, an adapter or a model of the hub")
    parser.add_argument("--compare", metavar="OTHER", help="a second model that is asked the same")
    parser.add_argument("--prompt", default="trained", help="as in src/eval.py; the default is that of training")
    parser.add_argument("--temperature", type=bounded(0, kind=float), default=0.0, help="0 is greedy")
    parser.add_argument("--max_new_tokens", type=bounded(1), default=512)
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
