gcloud compute tpus queued-resources delete run1 --force --quiet --zone=us-west4-a --project=mine
