"""Ask a server started by `sparsesteer serve` the same question unsteered and steered, with OpenAI's own client.

pip install openai
python examples/openai_client.py --wish polite@0.8 "Tell me about your day."
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--wish", required=True, help="NAME or NAME@STRENGTH of a spec that the server has")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    options = parser.parse_args()
    client = OpenAI(base_url=options.url, api_key=os.environ.get("VLLM_API_KEY", "none"))
    model = client.models.list().data[0].id
    for wish in (None, options.wish):
        answer = client.completions.create(
            model=model,
            prompt=options.prompt,
            max_tokens=60,
            temperature=0,
            extra_body={"vllm_xargs": {"sparsesteer": wish}} if wish else {},
        )
        print(f"== {wish or 'unsteered'}\n{answer.choices[0].text}\n")


if __name__ == "__main__":
    main()
