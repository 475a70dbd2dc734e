"""``ssl-vit eval`` and ``ssl-vit embed``: weights and images become scores, or a file of features."""

from __future__ import annotations

import json

from ssl_vit.cli.parser import Parser, add_weights, existing, new_file, one_of, say


def evaluate(argv: list[str]) -> None:
    """Score features on labelled images, by k-NN or a linear classifier."""
    parser = Parser("eval", str(evaluate.__doc__))
    parser.add_argument("kind", metavar="knn|linear", type=one_of("knn", "linear"), help="how to score")
    add_weights(parser)
    parser.add_argument("--train", type=existing, metavar="DIR", required=True, help="labelled images to learn from")
    parser.add_argument("--val", type=existing, metavar="DIR", required=True, help="labelled images to score on")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result there too")
    args = parser.parse(argv)
    from ssl_vit.eval import api

    result = api.evaluate(
        args.kind, args.weights, train=args.train, val=args.val, backbone=args.backbone, json=args.json
    )
    say(json.dumps(result, indent=2))


def embed(argv: list[str]) -> None:
    """Write the feature vector of every image of a folder to a file."""
    parser = Parser("embed", str(embed.__doc__))
    add_weights(parser)
    parser.add_argument("data", metavar="DATA", type=existing, help="folder of images")
    parser.add_argument("--out", type=new_file, metavar="FILE", required=True, help="the .npz file to write")
    args = parser.parse(argv)
    from ssl_vit.eval import api

    say(str(api.embed(args.weights, args.data, args.out, backbone=args.backbone)))
