"""The vectors of the texts in TEXTS, by OpenAI's own client, LangChain and LlamaIndex."""

import json
import os

import openai
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

MODEL = "embedder"
texts = json.loads(os.environ["TEXTS"])
client = openai.OpenAI()
# Its own counting of tokens is of OpenAI's models, and it would send their ids.
langchain = OpenAIEmbeddings(model=MODEL, check_embedding_ctx_length=False)
llama_index = OpenAILikeEmbedding(
    model_name=MODEL, api_base=os.environ["OPENAI_BASE_URL"], api_key="any"
)


def created(**options):
    """Return OpenAI's vectors; without an encoding its client asks for base64."""
    answer = client.embeddings.create(model=MODEL, input=texts, **options)
    return [item.embedding for item in answer.data]


print(
    json.dumps(
        {
            "openai": created(),
            "openai, floats": created(encoding_format="float"),
            "LangChain": langchain.embed_documents(texts),
            "LangChain, a query": [langchain.embed_query(text) for text in texts],
            "LlamaIndex": llama_index.get_text_embedding_batch(texts),
            "LlamaIndex, a query": [llama_index.get_query_embedding(text) for text in texts],
        }
    )
)
