"""What a model wrote → what its caller gets: content, thoughts, tool calls. Pure and incremental.

    characters ─ Reader ─ OutputParser ┬ Prose                  content and thoughts
                                       ├ HermesCall, XmlCall    calls, through a CallWriter
                                       └ Draft                  calls inside a thought
                                                        ─ events

Whatever the cuts between the characters, the joined events are the same.
"""
