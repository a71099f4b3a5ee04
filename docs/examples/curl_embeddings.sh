#!/bin/sh
# The vectors of two texts.  curl_embeddings.sh [MODEL]
set -eu
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
curl -sS --fail-with-body "$url/embeddings" \
  -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" -H 'Content-Type: application/json' \
  -d '{"model": "'"${1:-demo}"'", "input": ["a cat", "a kitten"]}'
echo
