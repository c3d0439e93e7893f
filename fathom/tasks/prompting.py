"""How a question is put: a system message, an instruction at its end, solved examples before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fathom.core.chat import Message
from fathom.core.errors import UsageError

ShotsAs = Literal["turns", "text"]
ASKS = {
    # DeepSeek-R1's usage recommendation and Qwen's evaluation ask in these words (rl.md §6)
    "boxed": "Please reason step by step, and put your final answer within \\boxed{}.",
    "boxed_zh": "请逐步推理，并把最终答案放在 \\boxed{} 中。",
    "letter": "Please reason step by step, and end with the letter of the right option within \\boxed{}.",
    "letter_zh": "请逐步推理，并把正确选项的字母放在 \\boxed{} 中。",
    # R1-Zero asks in plain text for thinking and answer in their tags and says nothing of how to think (rl.md §3.1)
    "r1_zero": "A user asks a question, and an assistant answers it. The assistant first thinks it through in private, "
               "then answers. Its thinking stands inside <think> </think>, its answer inside <answer> </answer>.\n\n"
               "User: {question}\nAssistant:",
    "words": "Think step by step, then end with a line that says: The answer is …",
}
SLOT = "{question}"


@dataclass(frozen=True)
class Prompting:
    """`ask` is a name of ASKS, a text that follows the question, or one that holds it in the slot {question}.

    `shots` solved training problems come first, as `turns` of the chat or as one `text` with the question, for models
    that have learnt no chat.
    """

    system: str = ""
    ask: str = ""
    shots: int = 0
    shots_as: ShotsAs = "turns"

    def __post_init__(self) -> None:
        for name in ("system", "ask"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"{name}={getattr(self, name)!r:.80}: must be text; write what the model is told")
        if isinstance(self.shots, bool) or not isinstance(self.shots, int) or not 0 <= self.shots <= 64:
            raise UsageError(f"shots={self.shots!r:.80}: must be a whole number from 0 to 64; give how many examples")
        if self.shots_as not in get_args(ShotsAs):
            raise UsageError(f"shots_as={self.shots_as!r:.80}: must be turns or text; say how examples are shown")

    def __bool__(self) -> bool:
        return self != Prompting()

    def told(self) -> dict[str, object]:
        """What stands beside a score: only what is set."""
        return {name: value for name, value in vars(self).items()
                if value != getattr(Prompting(), name) and (name != "shots_as" or self.shots)}

    def put(
        self, prompt: Sequence[Message], examples: Sequence[tuple[Sequence[Message], str]] = ()
    ) -> tuple[Message, ...]:
        """A problem's prompt as the model sees it; `examples` are (prompt, solution)."""
        *before, last = prompt
        question = self._asked(last.text)
        shown = [(self._asked(asked[-1].text), solution) for asked, solution in examples]
        system = (Message("system", self.system),) if self.system else ()
        if self.shots_as == "text" and shown:
            parts = [f"Problem:\n{asked}\n\nSolution:\n{solution}\n\n\n" for asked, solution in shown]
            return (*system, *before, Message(last.role, f"{''.join(parts)}Problem:\n{question}\n\nSolution:"))
        turns = [Message(role, text) for asked, solution in shown
                 for role, text in (("user", asked), ("assistant", solution))]
        return (*system, *before, *turns, Message(last.role, question))

    def _asked(self, question: str) -> str:
        ask = ASKS.get(self.ask, self.ask)
        if not ask:
            return question
        return ask.replace(SLOT, question) if SLOT in ask else f"{question}\n\n{ask}"
