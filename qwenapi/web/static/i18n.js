// The pages' words in English and Chinese: the chat's here, another page's by addTexts. An element
// names its text in `data-i18n`, so that a change of language reaches what is already on the page.

import { recall, remember } from "./memory.js";

const TEXTS = {
  en: {
    addPicture: "Add pictures",
    asksForTool: "The model asks for a tool, and this page runs none.",
    call: "Tool call",
    conversation: "Conversation",
    copied: "Copied",
    copy: "Copy",
    copyAnswer: "Copy answer",
    cut: "Cut off at the length limit.",
    empty: "The answer is empty.",
    error_busy: "The server is busy and its queue is full. Try again in about {seconds} s.",
    error_context: "This conversation no longer fits the model. Start a new chat.",
    error_key: "This server asks for an API key. Enter it below, then retry.",
    error_lost: "The connection was lost before the answer was complete.",
    error_refused: "The server refused the request.",
    error_server: "The server failed to answer.",
    error_unavailable: "The model is not ready. Try again in a moment.",
    hint: "Enter sends · Shift+Enter starts a new line",
    key: "API key",
    loading: "Loading the model…",
    message: "Your message",
    model: "Model",
    newChat: "New chat",
    notAPicture: "That is no PNG, JPEG, WebP or GIF, and cannot be sent.",
    picture: "Picture",
    picturesRefused: "This model takes text only: choose one that sees to send pictures.",
    removePicture: "Remove picture",
    status: "Status",
    otherLanguage: "中文",
    placeholder: "Ask anything",
    retry: "Retry",
    send: "Send",
    stop: "Stop",
    stopped: "Stopped.",
    suggestion1: "Write a recursive factorial in Python",
    suggestion2: "Explain what a hash table is",
    suggestion3: "Say “Good morning” in Chinese",
    switchLanguage: "切换到中文",
    switchTheme: "Light or dark",
    thinking: "Thinking…",
    thought: "Thoughts",
    welcome: "What can I do for you?",
    welcomeNote: "Answers come from a model on this server and can be wrong.",
    youSaid: "You:",
    itSaid: "Answer:",
  },
  zh: {
    addPicture: "添加图片",
    asksForTool: "模型请求调用工具，但本页面不执行工具。",
    call: "工具调用",
    conversation: "对话",
    copied: "已复制",
    copy: "复制",
    copyAnswer: "复制回答",
    cut: "已达到长度上限，回答被截断。",
    empty: "回答为空。",
    error_busy: "服务繁忙，队列已满。请在约 {seconds} 秒后重试。",
    error_context: "对话过长，超出模型的上下文。请新建对话。",
    error_key: "服务器需要 API 密钥。请在下方填写后重试。",
    error_lost: "连接中断，回答不完整。",
    error_refused: "服务器拒绝了请求。",
    error_server: "服务器未能回答。",
    error_unavailable: "模型尚未就绪，请稍后重试。",
    hint: "Enter 发送 · Shift+Enter 换行",
    key: "API 密钥",
    loading: "模型加载中…",
    message: "你的消息",
    model: "模型",
    newChat: "新建对话",
    notAPicture: "这不是 PNG、JPEG、WebP 或 GIF，无法发送。",
    picture: "图片",
    picturesRefused: "该模型只接受文本：请选择能看图的模型再发送图片。",
    removePicture: "移除图片",
    status: "运行状态",
    otherLanguage: "EN",
    placeholder: "问点什么",
    retry: "重试",
    send: "发送",
    stop: "停止",
    stopped: "已停止。",
    suggestion1: "用 Python 写一个递归阶乘函数",
    suggestion2: "解释一下什么是哈希表",
    suggestion3: "把“大家早上好”翻译成英文",
    switchLanguage: "Switch to English",
    switchTheme: "浅色或深色",
    thinking: "思考中…",
    thought: "思考过程",
    welcome: "有什么可以帮你？",
    welcomeNote: "回答由本服务器上的模型生成，可能有误。",
    youSaid: "你：",
    itSaid: "回答：",
  },
};

let language = recall("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

/** Give the page words of its own, by language. */
export function addTexts(texts) {
  for (const [name, words] of Object.entries(texts)) Object.assign(TEXTS[name], words);
}

/** Return a text of the current language, `{name}` replaced by `values.name`. */
export function text(key, values = {}) {
  const template = (TEXTS[language] ?? TEXTS.en)[key];
  return template.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Give an element a text that follows the language; returns the element. */
export function say(element, key, values = {}) {
  element.dataset.i18n = key;
  element.dataset.values = JSON.stringify(values);
  element.textContent = text(key, values);
  return element;
}

/** Put every text of the page into the current language. */
export function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-i18n]")) {
    say(element, element.dataset.i18n, JSON.parse(element.dataset.values ?? "{}"));
  }
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    const label = text(element.dataset.i18nLabel);
    element.setAttribute("aria-label", label);
    if (element.matches("button, a")) element.title = label;
  }
  for (const element of document.querySelectorAll("[data-i18n-placeholder]")) {
    element.placeholder = text(element.dataset.i18nPlaceholder);
  }
}

/** Change to the other language and remember it. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  remember("language", language);
  translatePage();
}
