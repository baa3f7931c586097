"""Short definitions, and two longer answers. The definitions are in topics.tsv."""

from typing import NamedTuple

from data.texts import table


class Topic(NamedTuple):
    """What a thing is called and what it is, in both languages."""

    name_zh: str
    name_en: str
    answer_zh: str
    answer_en: str


TOPICS = [Topic(*row) for row in table("topics")]
HISTORY_ZH = (
    "深度学习的发展历程：1943 年提出人工神经元；1986 年反向传播算法普及；"
    "2006 年深度信念网络出现；2012 年 AlexNet 赢得图像识别比赛；"
    "2017 年 Transformer 诞生；2020 年以后进入大语言模型时代。"
)
HISTORY_EN = (
    "A short history of deep learning: artificial neurons in 1943, backpropagation in 1986, deep "
    "belief networks in 2006, AlexNet in 2012, the Transformer in 2017, large language models "
    "since 2020."
)
EXAMPLE_ZH = (
    "当然。比如垃圾邮件过滤：给计算机看很多标好的邮件，它就学会哪些词常出现在垃圾邮件里，"
    "然后自动判断新的邮件。"
)
EXAMPLE_EN = (
    "Of course. Take a spam filter: it is shown many labelled mails, learns which words are common "
    "in spam, and then judges new mails by itself."
)
