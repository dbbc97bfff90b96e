"""A Gradio front end, in its own environment: pip install gradio opsin-*.whl, then python examples/gradio_app.py [--url URL]

It uses the API like any other client.
"""

import argparse

from opsin import Client, OpsinError

MODEL = "flags"
"""A starter whose tokens merge."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        front_end(client).launch(server_port=arguments.port)


def front_end(client):
    import gradio

    def classify(image, merge):
        try:
            return labels(client, image, merge)
        except OpsinError as error:
            raise gradio.Error(str(error)) from error

    return gradio.Interface(
        classify,
        inputs=[gradio.Image(type="numpy"), gradio.Dropdown(rungs(client), value="off", label="Token merging")],
        outputs=[gradio.Label(num_top_classes=5), gradio.Textbox(label="How it was answered")],
        title="Opsin",
        flagging_mode="never",
    )


def labels(client, image, merge):
    """Classify an image uint8 (H, W, 3); return scores by label, and a line about tokens and time."""
    result = client.classify(image, model=MODEL, merge=merge)
    merging, timing = result.merging, result.timing
    summary = (
        f"{merging.tokens_in} → {merging.tokens_out} tokens, {timing.inference_ms:.1f} ms in the network, {timing.total_ms:.1f} ms in all"
    )
    return {one.label: one.score for one in result.predictions}, summary


def rungs(client):
    model = client.model(MODEL)
    return ["off", *(rung["name"] for rung in model.details["ladder"])]


if __name__ == "__main__":
    main()
