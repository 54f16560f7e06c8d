"""An instruction in words stands where the soft prompt would: a hard prompt that somebody wrote, nothing is tuned."""

from dataclasses import replace

from bbt.errors import ConfigError
from bbt.methods.manual import Manual
from bbt.settings import InstructionConfig
from bbt.tasks import Task


class Instruction(Manual):
    """The manual prompt with the words of `prompt.instruction` in the place of `{prompt}`."""

    prompt: InstructionConfig = InstructionConfig()
    """The section `prompt`, of which the instruction is read."""

    def worded(self, task: Task) -> Task:
        """The task with the instruction in its template.

        Raises:
            ConfigError: there is no instruction, or the template has not exactly one place for it.
        """
        words = self.prompt.instruction
        if not words:
            raise ConfigError("the method instruction needs prompt.instruction, the words in the prompt's place.")
        if task.template.source.count("{prompt}") != 1:
            raise ConfigError(f"an instruction needs one {{prompt}} in the template {task.template.source!r}.")
        return replace(task, template=task.template.filled(words))
