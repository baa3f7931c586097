"""What a start says of model names: which ones callers may use, and who answers to each."""

from qwenapi.profile import Profiles


def alias_table(profiles: Profiles) -> str:
    """Return one line for each name, and one for callers who give none; nothing for a lone name."""
    names = profiles.model_names
    if len(names) < 2:
        return ""
    answering = {name: profiles.for_model(name) for name in names}
    unnamed = profiles.for_model(None)
    if not unnamed.requires_model:
        answering["(none)"] = unnamed
    width = max(map(len, answering))
    rows = (f"  {name:{width}}  {p.name} as {p.canonical}" for name, p in answering.items())
    return "\n".join(["model names:", *rows])
