git archive --format=tar.gz --output=/tmp/run1.tar.gz HEAD
gcloud compute tpus queued-resources scp /tmp/run1.tar.gz run1: --node=all --worker=all --zone=us-west4-a --project=mine
gcloud compute tpus queued-resources ssh run1 --node=all --worker=all '--command=rm -rf mgm_jax_code.new && mkdir mgm_jax_code.new && tar -xzf run1.tar.gz -C mgm_jax_code.new && if [ -d mgm_jax_code/.venv ]; then mv mgm_jax_code/.venv mgm_jax_code.new/; fi && rm -rf mgm_jax_code && mv mgm_jax_code.new mgm_jax_code' --zone=us-west4-a --project=mine
