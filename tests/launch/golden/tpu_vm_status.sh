gcloud compute tpus queued-resources describe run1 '--format=yaml(name,state,tpu.nodeSpec)' --zone=us-west4-a --project=mine
