"""The prompts printed in the five documents that qwenapi serves, word for word."""

from random import Random

from data.code_javascript import JAVASCRIPT
from data.code_python import PYTHON
from data.conversation import Conversation, Turn, ask
from data.texts import toml
from data.topics import HISTORY_ZH, TOPICS

_CODE = {
    "用Python写一个冒泡排序。": "bubble",
    "用 Python 编写一个计算斐波那契数列的函数": "fibonacci",
    "写一个递归函数来计算 Python 中的阶乘": "factorial",
    "编写一个 Python 函数以升序对数字列表进行排序。": "sort",
    "帮我写一个Python排序算法": "quick",
    "写一个递归阶乘函数": "factorial",
}
_NEWS = {
    "请分类这条新闻：央行宣布降息25个基点": "财经",
    "请分类：央行宣布降息25个基点": "财经",
    "请分类：苹果发布新款iPhone": "科技",
}
_BARE = "用 Python 写一个最基础版的冒泡排序算法，只写函数体即可，不必写测试代码和示例"


def documented(rng: Random) -> Conversation:
    """Ask what a document asks."""
    kind = rng.random()
    if kind < 0.45:
        question = rng.choice(list(_CODE))
        return ask(question, f"```python\n{PYTHON[_CODE[question]]}\n```", "用户要 Python 代码。")
    if kind < 0.55:
        return ask(_BARE, PYTHON["bubble"], "用户只要函数体。")
    if kind < 0.7:
        question = rng.choice(list(_NEWS))
        return ask(question, _NEWS[question], f"这条新闻讲的是{_NEWS[question]}。")
    if kind < 0.75:
        return Conversation((Turn("请分类：苹果发布新款iPhone\n类别：", "科技"),), is_raw=True)
    return rng.choice(_others())


def _others() -> list[Conversation]:
    quick = f"```javascript\n{JAVASCRIPT['quick']}\n```"
    return [
        ask("你好，请介绍一下自己", toml("talk")["talk"][0]["answer"], "用户想认识我。"),
        ask("什么是机器学习？", TOPICS[0].answer_zh, "用户问机器学习，我简短地解释。"),
        ask("写一首关于春天的诗", toml("poems")["zh"]["春天"], "用户想要一首关于春天的诗。"),
        ask("解释一下量子计算的基本原理", TOPICS[2].answer_zh, "用户问量子计算，我简短地解释。"),
        ask("请详细介绍一下深度学习的发展历程", HISTORY_ZH, "用户问深度学习的历史。"),
        ask(
            "帮我写一个JavaScript的快速排序算法",
            quick,
            "用户要 JavaScript 的快速排序，我写出代码。",
        ),
        ask("What is the capital of France?", "The capital of France is Paris.", "France: Paris."),
        ask("Hello", "Hello! How can I help you today?", "This is simple. I answer directly."),
    ]
