#!/usr/bin/env bash
# Makes what a release is made of, in dist/: the wheel and the source, requirements.txt with the hash of every file of
# every package that it needs, sbom.json with all of them as CycloneDX has it, audit.json with the weaknesses that are
# known of them (a release with any ends with 1), and SHA256SUMS.
#   tools/release.sh [EXTRA …]        # for the extras too: tools/release.sh detection numba
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
bin="$work/venv/bin"
"$bin/pip" install --quiet --disable-pip-version-check 'build==1.*' 'uv>=0.8' 'pip-audit==2.*' 'cyclonedx-bom==7.*'
mkdir -p dist
rm -f dist/*
"$bin/python" -m build --outdir dist .
extras=()
for name in "$@"; do extras+=(--extra "$name"); done
"$bin/uv" pip compile pyproject.toml "${extras[@]}" --generate-hashes --python-version 3.11 --quiet \
  --custom-compile-command "tools/release.sh $*" --output-file dist/requirements.txt
if grep -E '^lightning==2\.6\.[23]( |$)' dist/requirements.txt; then
  echo "these releases of lightning are malicious"; exit 1
fi
"$bin/cyclonedx-py" requirements dist/requirements.txt --pyproject pyproject.toml --output-reproducible \
  --of JSON --output-file dist/sbom.json
(cd dist && sha256sum -- * > "$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
"$bin/pip-audit" --requirement dist/requirements.txt --require-hashes --disable-pip --format json --output dist/audit.json
echo "dist/: $(ls dist | tr '\n' ' ')"
